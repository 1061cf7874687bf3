/* stream.h - see stream.c. */
#ifndef STREAM_H
#define STREAM_H

/* `network --events ...`: the arguments behind --events; the exit status. */
int stream(int argc, char **argv);

#endif
