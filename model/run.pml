/* Who speaks for a run: one step with two attempts, and two executors. Executor 0 began the run; executor
   1 resumes it and takes its epoch, while 0 may still go on, or may have stopped between any two of its
   statements. Both tail Dagster's log, ask the ledger about the step, adjudicate, write the end of an
   attempt whose process wrote none, submit the next attempt, and write the end of the run.
   README.md names the properties and mutants. */
#include "table.pml"
#define SUCCESS 1
#define FAILURE 2
#define RETRY   3

byte st[2], starts[2];                           /* the attempts' tasks in the ledger */
byte ends[2], end[2];                            /* in Dagster's log: ending events of each attempt, and the first */
byte epoch, runends;                     /* the run's: executors so far, ends in the log */
hidden byte at;

#ifdef M_NOEPOCH
#define CURRENT true
#else
#define CURRENT (epoch==mine)
#endif
#ifdef M_CLOSEANY
#define MAYCLOSE true
#else
#define MAYCLOSE CURRENT
#endif
/* What an executor makes of an attempt without an end: a lost first attempt is retried. */
#define VERDICT (n==0 && st[0]==LOST -> RETRY : FAILURE)
#ifdef M_COUNT
#define NOEND (ends[n]==0 || end[n]==RETRY)      /* a retry is not taken for an end */
#else
#define NOEND (ends[n]==0)
#endif

#define MOVE(N,V,B) \
  REQUIRE("table", RULE(V,st[N],B) > 0); \
  at = N; c_code { took[V][now.st[at]][B] = 1; }; \
  st[N] = B

inline store(kind) {
  ends[n]++;
  end[n] = (ends[n]==1 -> kind : end[n]);
  REQUIRE("one ending event", ends[n]<=1)
}

/* Worker and process of an attempt: it writes its end and is settled, or dies and leaves the log empty. */
proctype Attempt(byte n) {
end_a:
  atomic { st[n]==QUEUED -> MOVE(n,CLAIM,LEASED) };
  atomic {
    if :: st[n]==LEASED -> MOVE(n,START,RUNNING); starts[n]++; REQUIRE("started once", starts[n]<=1)
       :: else -> goto over
    fi };
  if
  :: atomic { store(SUCCESS) }; atomic { MOVE(n,SETTLE,SUCCEEDED) }
  :: atomic { n==0 -> store(RETRY) }; atomic { true -> MOVE(n,SETTLE,FAILED) }
  :: atomic { store(FAILURE) }; atomic { MOVE(n,REPAIR,FAILED) }           /* and its worker dies: the server looks */
  :: atomic { true -> MOVE(n,SETTLE,FAILED) }
  :: atomic { true -> MOVE(n,SWEEP,LOST) }
  fi;
over: skip
}

proctype Executor(byte mine) {
  byte n, seen;
end_x:
  atomic { epoch==mine-1 && runends==0 -> epoch++ };                         /* taken over: a call of its own */
submit:
  atomic {
    if :: CURRENT ->
#ifdef M_SUBMITTWICE
            if :: true ->
#else
            if :: st[n]==NEW ->
#endif
                 REQUIRE("a retry follows a retry event", n==0 || end[0]==RETRY);
                 MOVE(n,SUBMIT,QUEUED)
               :: else -> skip                                               /* known, idempotent */
            fi
       :: !(CURRENT) -> goto gone
    fi };
end_wait:
  if
  :: atomic { ends[n]>0 -> seen = end[n] }; goto act                         /* the tail of the log */
#ifdef M_EARLY
  :: atomic { st[n]==RUNNING -> skip }; goto verdict                         /* its session is suspect, and that is enough */
#endif
  :: atomic { TERMINAL(st[n]) -> skip }                                      /* the ledger says so; the tail may lag */
  :: atomic { !(CURRENT) -> goto gone }
  fi;
ask:
  atomic {                                                                   /* adjudicate */
    if :: CURRENT ->
            REQUIRE("table", RULE(ADJUDICATE,st[n],st[n]) > 0);
            c_code { took[ADJUDICATE][now.st[PExecutor->n]][now.st[PExecutor->n]] = 1; };
       :: !(CURRENT) -> goto gone
    fi };
#ifndef M_NOREREAD
  atomic {                                                                   /* the whole log, once more */
    if :: ends[n]>0 -> seen = end[n]; goto act
       :: else -> skip
    fi };
#endif
verdict:
#ifdef M_NOLOCK
  atomic { if :: NOEND -> skip :: else -> seen = VERDICT; goto act fi };
  atomic { seen = VERDICT; store(seen) };
#else
  atomic { seen = VERDICT; if :: NOEND -> store(seen) :: else -> skip fi };  /* look and write: one transaction */
#endif
act:
  if
  :: atomic { seen==RETRY && n==0 -> n = 1; seen = 0; goto submit }
  :: atomic { !(seen==RETRY && n==0) ->                                      /* the run's end, through its own gate */
       if :: CURRENT ->
               runends++;
               REQUIRE("one end of the run", runends<=1);
               REQUIRE("the run ends as its step did", end[n]==seen)
          :: else -> skip
       fi }
  fi;
gone:
  atomic {                                                                   /* on leaving: cancel what is open */
    if :: MAYCLOSE && st[n]==QUEUED -> REQUIRE("no cancel by a deposed executor", epoch==mine); MOVE(n,CLOSE,CANCELLED)
       :: else -> skip
    fi }
}

proctype Monitor() {
end_m: do
  :: timeout -> atomic {
       REQUIRE("the run ends", runends==1);
       REQUIRE("every task ends", TERMINAL(st[0]) && (st[1]==NEW || TERMINAL(st[1])));
       REQUIRE("every end is in the log", ends[0]==1 && (st[1]==NEW || ends[1]==1));
       break }
  od
}

init {
  BEGIN_SEARCH;
  atomic { run Executor(1); run Executor(2); run Attempt(0); run Attempt(1); run Monitor() }
}
