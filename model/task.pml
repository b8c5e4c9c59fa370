/* One task from its submission to its end in the ledger and in Dagster's log: the two deadlines of a
   session, both gates, the write of the ending event, cancel, close, revoke, abandon, sweep, repair.

   Worker 0 and its processes suffer all that happens, BAD times: kill -9, a stop of the worker
   (SIGSTOP) or, with -DHOSTPAUSE, of its whole host, a cut from the ledger for longer than the TTL or
   the run lease, a drain, a connection to Dagster's log cut in the middle of its statement. Answers of
   the ledger are lost AMB times. Worker 1 is healthy. README.md names the properties and mutants. */
#include "table.pml"
#ifndef BAD
#define BAD 1
#endif
#ifndef AMB
#define AMB 0
#endif
#ifndef POISONED
#define POISONED 2                               /* deaths of sessions under a lease that make it dead */
#endif
#ifdef RERUN
#define MAXSTARTS 2
#else
#define MAXSTARTS 1
#endif
#define NS   (2+BAD)
#define NONE 9

/* A session's row. */
#define ALIVE   1
#define SUSPECT 2
#define ENDED   3
/* A step's process. */
#define GONE    0
#define USER    1                                /* the user's code runs */
#define ASKS    2                                /* asks for its ending event */
#define GRANTED 3                                /* may write it */
#define WRITES  4                                /* its INSERT is on its way */
#define CUT     5                                /* the connection broke over it */
#define AGAIN   6                                /* granted again, after that */
#define WROTE   7                                /* the INSERT was answered */
#define REPORTS 8                                /* the worker has been told */
#define LOOKED  9                                /* -DGAP: its worker has looked and will answer: granted */
/* What a log has, or a process has to say. */
#define SUCCESS 1
#define FAILURE 2

byte st, fence, owner = NONE, starts, terms, deaths;  /* the task's row, and what is counted of it */
bool flag, runopen = true, closed, over;              /* over: the submission has been tried */
byte row[NS], nsess = 1;                              /* sessions: 0 is worker 1's, the others worker 0's */

byte cur, late, frozen;                          /* worker 0: session; 1: TTL near, 2: run lease near; 1: stopped, 2: its host */
bool open = true, ended, crashed;                /* its gates; its life is over; it was killed */
byte ch[2], word[2], chs[2], chf[2];             /* step processes: where, with what to say, session, fence */
bool granted[2], told[2], refused[2], cancelled[2];

byte log, ends, fly, flew, flys;                 /* the log's ending event, how many; INSERTs on their way: number, what, whose */
byte bad = BAD, amb = AMB, slow = 1;

#define UP(w)    (w==1 || (frozen==0 && !crashed && !ended))
#define OPEN(w)  (w==1 || open)
#ifdef M_NOSTARTGATE
#define STARTGATE(w) true
#else
#define STARTGATE(w) OPEN(w)
#endif
#ifdef M_NOGATE
#define GATE(w)  true
#else
#define GATE(w)  (OPEN(w) && !refused[w])
#endif
#define KILL(w)  ch[w] = GONE

#define MOVE(V,B) \
  REQUIRE("table", RULE(V,st,B) > 0); \
  c_code { took[V][now.st][B] = 1; }; \
  fence = (RULE(V,st,B)==RAISE -> fence+1 : fence); \
  if :: TERMINAL(B) -> terms++; REQUIRE("one outcome", terms<=1 && !TERMINAL(st)) :: else -> skip fi; \
  st = B

/* What a worker says of an attempt whose process is gone. */
inline settle(w) {
#ifdef M_SETTLEID
  if :: true ->
#else
#ifdef M_SETTLESTATE
  if :: st==RUNNING ->
#else
  if :: st==RUNNING && fence==f ->
#endif
#endif
       if :: told[w] && word[w]==SUCCESS -> MOVE(SETTLE,SUCCEEDED)
          :: (!told[w] || word[w]!=SUCCESS) && cancelled[w] -> MOVE(SETTLE,CANCELLED)
          :: !cancelled[w] && told[w] && word[w]==FAILURE -> MOVE(SETTLE,FAILED)
          :: !cancelled[w] && !told[w] && refused[w] -> MOVE(SETTLE,LOST)
          :: !cancelled[w] && !told[w] && !refused[w] -> MOVE(SETTLE,FAILED)
       fi
     :: else -> skip
  fi
}

proctype Worker(byte w) {
  byte s, f;
fresh:
  atomic {
    if :: w==1 -> s = 0
       :: w==0 && nsess<NS -> s = nsess; nsess++; cur = s; open = true; late = 0; ended = false; crashed = false
    fi;
    row[s] = ALIVE
  };
  { f = 0;
idle:
    atomic { f = 0; granted[w] = false; told[w] = false; refused[w] = false; cancelled[w] = false; word[w] = 0 };
end_idle:
    atomic { UP(w) && OPEN(w) && st==QUEUED && row[s]==ALIVE -> MOVE(CLAIM,LEASED); f = fence; owner = s };
leased:
    if
    :: atomic { UP(w) && w==0 && bad>0 ->                                    /* its process could not be made */
         bad--;
         if :: st==LEASED && fence==f -> MOVE(RELEASE,QUEUED); owner = NONE
#ifndef M_FORGETSTART
            :: st==RUNNING && fence==f -> MOVE(SETTLE,LOST)                  /* a start whose answer was lost */
#endif
            :: else -> skip
         fi };
       goto idle
    :: atomic { UP(w) && STARTGATE(w) ->
#ifdef M_STARTSTATE
         if :: st==LEASED || st==RUNNING ->
#else
#ifdef M_NOSESSION
         if :: st==LEASED && fence==f && runopen && !flag ->
#else
#ifdef M_NORUNGATE
         if :: st==LEASED && fence==f && row[s]==ALIVE && !flag ->
#else
         if :: st==LEASED && fence==f && row[s]==ALIVE && runopen && !flag ->
#endif
#endif
#endif
              MOVE(START,RUNNING);
              starts++;
              REQUIRE("started once", starts<=MAXSTARTS);
              REQUIRE("nothing starts in a closed run", !closed);
              REQUIRE("nothing starts in a dead session", row[s]!=ENDED);
              if :: amb>0 -> amb--; goto unsure :: skip; goto begin fi
#ifndef M_STARTAGAIN
            :: st==RUNNING && fence==f && owner==s -> goto begin             /* its own start, whose answer was lost */
#endif
            :: st==LEASED && fence==f && row[s]==SUSPECT -> goto unsure      /* asks again: it may come to life */
            :: else -> goto idle
         fi }
    fi;
unsure:
    goto leased;                                                             /* issued again */
begin:
    atomic { ch[w] = USER; chs[w] = s; chf[w] = f };
running:
    do
    :: atomic { UP(w) && ch[w]==ASKS && GATE(w) ->
         granted[w] = true;
#ifdef GAP
         if :: w==0 -> ch[w] = LOOKED :: else -> ch[w] = GRANTED fi }
    :: atomic { UP(w) && ch[w]==LOOKED -> ch[w] = GRANTED }                  /* the answer, a moment after the look */
#else
         ch[w] = GRANTED }
#endif
    :: atomic { UP(w) && ch[w]==CUT && GATE(w) -> ch[w] = AGAIN }
    :: atomic { UP(w) && (ch[w]==ASKS || ch[w]==CUT) && refused[w] -> KILL(w) }
    :: atomic { UP(w) && flag && !cancelled[w] && !refused[w] -> cancelled[w] = true }
    :: atomic { UP(w) && cancelled[w] && ch[w]!=GONE && ch[w]!=REPORTS -> KILL(w) }
    :: atomic { UP(w) && w==0 && bad>0 && !refused[w] && ch[w]!=GONE && ch[w]!=REPORTS ->   /* drain */
         bad--; refused[w] = true;
         if :: st==RUNNING && fence==f ->
                MOVE(REVOKE,RUNNING);
#ifdef M_OLDFENCE
                if :: amb>0 -> amb-- :: f = fence fi                         /* no answer: goes on with the fence it knows */
#else
                f = fence                                                    /* asked until it is answered */
#endif
            :: else -> skip fi }
    :: atomic { UP(w) && refused[w] && ch[w]!=GONE && ch[w]!=REPORTS -> KILL(w) }
    :: atomic { UP(w) && (ch[w]==REPORTS || ch[w]==GONE) -> break }
    od;
    atomic { UP(w) ->
#ifdef M_SETTLEBLIND
      settle(w)
#else
      if :: granted[w] && !told[w] ->                                        /* was its event stored? the server looks */
             if :: st==RUNNING && fence==f -> MOVE(ABANDON,RUNNING); owner = NONE :: else -> skip fi
         :: else -> settle(w)
      fi
#endif
      ; KILL(w) };
    goto idle
  } unless { (w==0 && (ended || crashed)) };
  atomic {
#ifdef M_NODEATHSIGNAL
    skip
#else
    KILL(w)
#endif
  };
  goto fresh
}

#ifdef DEADLINE
#define INTIME (row[chs[w]]==ALIVE)
#else
#define INTIME true
#endif
#ifdef M_LOOKEARLY
#define SURE true
#else
#define SURE (fly==0)                            /* the statement on the broken connection is over */
#endif
/* A step's process: it goes on while its worker is stopped. */
proctype Process(byte w) {
end_p: do
  :: atomic { ch[w]==USER && !(w==0 && frozen==2) -> word[w] = SUCCESS; ch[w] = ASKS }
  :: atomic { ch[w]==USER && !(w==0 && frozen==2) -> word[w] = FAILURE; ch[w] = ASKS }
#ifdef DEADLINE
  :: atomic { ch[w]==GRANTED && !(w==0 && frozen==2) && row[chs[w]]!=ALIVE -> ch[w] = ASKS }   /* the grant's time is over */
#endif
  :: atomic { ch[w]==GRANTED && !(w==0 && frozen==2) && INTIME -> fly++; flew = word[w]; flys = w; ch[w] = WRITES }
  :: atomic { ch[w]==AGAIN && !(w==0 && frozen==2) && SURE ->
#ifndef M_BLINDAGAIN
       if :: log!=0 -> ch[w] = WROTE :: else -> fly++; flew = word[w]; flys = w; ch[w] = WRITES fi
#else
       fly++; flew = word[w]; flys = w; ch[w] = WRITES
#endif
     }
  :: atomic { ch[w]==WROTE && !(w==0 && frozen==2) -> told[w] = true; ch[w] = REPORTS }
  :: atomic { w==0 && bad>0 && ch[w]!=GONE && frozen!=2 -> bad--; KILL(w) }            /* kill -9, out of memory */
  :: atomic { w==0 && bad>0 && ch[w]==WRITES && frozen!=2 -> bad--; ch[w] = CUT }
  od
}

#ifdef M_FENCEONLY
#define LIVES(s) true
#else
#define LIVES(s) (row[s]!=ENDED)
#endif
/* Dagster's database: a statement that has arrived is carried out, whatever became of its sender. */
proctype Log() {
end_l: do
  :: atomic { fly>0 -> fly--;
#ifdef FENCED
       if :: st==RUNNING && fence==chf[flys] && LIVES(chs[flys]) ->
#endif
       ends++; log = flew;
       REQUIRE("one ending event", ends<=1);
       REQUIRE("no event after the outcome", !TERMINAL(st));
#ifdef FENCED
          :: else -> KILL(flys) fi;
#endif
       if :: ch[flys]==WRITES -> ch[flys] = WROTE :: else -> skip fi }
  od
}

/* The time that passes for worker 0, its renewals, and what happens to it. */
proctype Fate() {
end_f: do
  :: atomic { bad>0 && UP(0) && cur!=0 && late==0 -> bad--; late = 1; open = false }   /* cut off: TTL less margin */
  :: atomic { UP(0) && late==1 && row[cur]!=ENDED -> late = 0; open = true; row[cur] = ALIVE }
  :: atomic { UP(0) && late==1 -> late = 2;                                            /* run lease less margin */
#ifndef M_NOSELFFENCE
       ended = true; KILL(0)
#endif
     }
  :: atomic { UP(0) && cur!=0 && row[cur]==ENDED -> ended = true; KILL(0) }            /* its renewal is refused */
  :: atomic { bad>0 && UP(0) && cur!=0 -> bad--; crashed = true;
#ifndef M_NODEATHSIGNAL
       KILL(0)
#endif
     }
#ifdef STOPS
  :: atomic { bad>0 && UP(0) && cur!=0 -> bad--; frozen = 1 }
#endif
#ifdef HOSTPAUSE
  :: atomic { bad>0 && UP(0) && cur!=0 -> bad--; frozen = 2 }
#endif
  :: atomic { frozen>0 -> frozen = 0;
#ifndef M_MONOCLOCK
       if :: row[cur]!=ALIVE && late==0 -> late = 1; open = false :: else -> skip fi   /* its clock has counted the stop */
#endif
     }
  od
}

/* Time passed without a renewal of session s. */
#define PASTTTL(s)   (row[s]==ALIVE && s<nsess && (s!=cur || late>=1 || frozen>0 || crashed))
#ifdef M_ONEDEADLINE
#define PASTLEASE(s) ((row[s]==ALIVE || row[s]==SUSPECT) && s<nsess && (s!=cur || late>=1 || frozen>0 || crashed))
#else
/* A write that was granted before the TTL is over by the end of the run lease; a stopped host's is not. */
#define PASTLEASE(s) ((row[s]==ALIVE || row[s]==SUSPECT) && s<nsess && \
  (s!=cur || crashed || (fly==0 && (late==2 || frozen==2 || (frozen==1 && ch[0]!=GRANTED && ch[0]!=AGAIN)))))
#endif
#define ORPHAN (st==RUNNING && (owner==NONE || row[owner]==ENDED))

inline bury(s) {
  row[s] = ENDED;
  REQUIRE("no process outlives its session", frozen>0 || ch[0]==GONE || chs[0]!=s)
}

inline take() {                                  /* a lease whose session is not alive */
  deaths = (row[owner]==ENDED -> deaths+1 : deaths);
  if :: deaths>=POISONED -> MOVE(POISON,DEAD)
     :: else -> MOVE(SWEEP,QUEUED)
  fi;
  owner = NONE
}

proctype Sweeper() {
  byte seen, f;
end_s: do
  :: atomic { PASTTTL(1) -> row[1] = SUSPECT }
  :: atomic { PASTLEASE(1) -> bury(1) }
#if BAD > 0
  :: atomic { PASTTTL(2) -> row[2] = SUSPECT }
  :: atomic { PASTLEASE(2) -> bury(2) }
#endif
#if BAD > 1
  :: atomic { PASTTTL(3) -> row[3] = SUSPECT }
  :: atomic { PASTLEASE(3) -> bury(3) }
#endif
  :: atomic { st==LEASED && row[owner]!=ALIVE -> take() }
  :: atomic { st==LEASED && row[owner]==ALIVE && slow>0 -> slow--; take() }  /* not started in time */
#ifdef M_NODRAIN
  :: atomic { ORPHAN -> seen = log; f = fence };
#else
  :: atomic { ORPHAN && fly==0 -> seen = log; f = fence };                   /* no write is on its way any more */
#endif
     atomic {                                                                /* the log and the ledger are two databases */
#ifdef M_STALESWEEP
       if :: true ->
#else
       if :: ORPHAN && fence==f ->
#endif
#ifdef M_NOLOOK
            seen = 0;
#endif
            if :: seen==SUCCESS -> MOVE(REPAIR,SUCCEEDED)
               :: seen==FAILURE && !flag -> MOVE(REPAIR,FAILED)
               :: seen==FAILURE && flag -> MOVE(REPAIR,CANCELLED)
#ifdef RERUN
               :: seen==0 && !flag && starts<MAXSTARTS -> fence++; st = QUEUED; owner = NONE
               :: seen==0 && !flag && starts>=MAXSTARTS -> MOVE(SWEEP,LOST)
#else
               :: seen==0 && !flag -> MOVE(SWEEP,LOST)
#endif
               :: seen==0 && flag -> MOVE(SWEEP,CANCELLED)
            fi
          :: else -> skip
       fi;
       seen = 0; f = 0 }
  od
}

proctype Server() {
  atomic {
    if :: runopen -> MOVE(SUBMIT,QUEUED)
       :: runopen -> MOVE(SUBMIT,QUEUED); MOVE(POISON,DEAD)                  /* its earlier attempts were lost */
       :: !runopen -> skip
    fi;
    over = true }
}

/* The executor writes the end of an attempt that has ended in the ledger and not in the log. */
proctype Executor() {
end_e: do
  :: atomic { TERMINAL(st) && ends==0 ->
       REQUIRE("table", RULE(ADJUDICATE,st,st) > 0);
       c_code { took[ADJUDICATE][now.st][now.st] = 1; };
       ends++; REQUIRE("one ending event", ends<=1) }
  od
}

#define STOP(V) \
  if :: st==QUEUED -> MOVE(V,CANCELLED); owner = NONE \
     :: st==LEASED -> MOVE(V,CANCELLED); owner = NONE \
     :: st==RUNNING -> MOVE(V,RUNNING); flag = true \
     :: else -> skip \
  fi

proctype User() {
  if :: skip
     :: true -> atomic { STOP(CANCEL) }
#ifdef M_CLOSE
     :: true -> atomic { STOP(CLOSE) }; atomic { runopen = false; closed = true }
#else
     :: atomic { runopen = false; closed = true }; atomic { STOP(CLOSE) }
#endif
  fi
}

proctype Monitor() {
end_m: do
  :: timeout -> atomic {
       REQUIRE("every task ends", TERMINAL(st) || (over && st==NEW));
       REQUIRE("no process is left", ch[0]==GONE && ch[1]==GONE && fly==0);
       REQUIRE("log and ledger agree", (log==SUCCESS && st==SUCCEEDED) || (log!=SUCCESS && st!=SUCCEEDED));
       REQUIRE("every end is in the log", st==NEW || ends==1);
       break }
  od
}

init {
  BEGIN_SEARCH;
  atomic { run Worker(0); run Worker(1); run Process(0); run Process(1); run Log(); run Fate(); run Sweeper();
           run Server(); run Executor(); run User(); run Monitor() }
}
