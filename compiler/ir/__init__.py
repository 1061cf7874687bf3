"""The graph IR: types, operations, neuron programs, rules, text form, and the interpreter that defines its meaning."""
