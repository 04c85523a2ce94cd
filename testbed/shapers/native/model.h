/* `relay --model`: the model alone, for tests that compare it with the Python one. */
#pragma once

/* Obeys standard input, tells on standard output; returns the exit code.

   Input, all of it whole numbers and letters between white space:

     delay_ns queue_bytes queue_packets codel_target_ns codel_interval_ns
     points rates mean_rate segments seed offset_ns         a course
     times... rates... edges... delays... enter... stay...  its numbers

   then any of these, in the order of time:

     l NOW       load the course
     s NOW       start it
     a NOW SIZE  a packet arrives; the first is number 0, the next 1, and so on
     t NOW       all that is due is delivered
     e NOW       stop

   Output: `packet NUMBER begin departure due` for each that is delivered; after any event `state` with drops by queue and CoDel, losses,
   bytes dropped and lost, bytes in the queue and inside, what is due next; after `e` a line `window` with the numbers of each, in C's
   hexadecimal notation, and `counters`. */
int model_main(void);
