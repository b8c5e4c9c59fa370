/* Bells are all alike: the ready table with SKIP LOCKED, the bells, sessions, claim, start, settle, sweep,
   cancel and close of a run. Two tasks (0 is better than 1), two workers with one slot each, NS lives.

   What covers a missing bell:  -DLOOK    a worker with a free slot looks at the ledger now and then
                                -DRERING  the server rings again while a ready row exists
   Environment: -DNOLOSS every commit is followed by its bell, and none is lost or doubled
                -DCALM   that, and no crash or pause      -DBUD=n  crashes and pauses together
                -DSEL    worker 0 may not claim task 1 (code version, size, broken preload)
                -DAMB    the answer to a claim may be lost after its commit
                -DRECON  the worker releases held rows unknown to it
                -DRINGLOCK  a ringer holds the ready row's lock while it rings
                -DRECHECK   an empty claim looks again without lock and keeps its bell while a row it may take exists
   README.md names the properties and the mutants (-DM_...). */
#include "table.pml"
#ifdef CALM
#define BUD 0
#define NOLOSS
#endif
#ifdef NOLOSS
#define LOSS 0
#else
#define LOSS 1
#endif
#ifndef BUD
#define BUD 1
#endif
#define NS (2+BUD)
#define MAXB 2
#define NONE 9
byte st[2], fence[2], starts[2], terms[2], owner[2] = NONE;
bool ready[2], lck[2], flag[2];                  /* ready row; its row lock; cancel flag of a running task */
bool alive[NS], used[NS];                        /* session row is alive; a live process still believes in it */
bool runopen = true, closed, submitted;
hidden byte at;
byte bells, nsess, bad = BUD, mess = LOSS, ambB = 1;

#define TERM(t)   TERMINAL(st[t])
#define OVER      (submitted && (st[0]==NEW || TERM(0)) && (st[1]==NEW || TERM(1)))
#ifdef SEL
#define MAY(t)  (w!=0 || t!=1)
#else
#define MAY(t)  true
#endif
#define FREE(t) (ready[t] && !lck[t] && MAY(t))
#define ROW     ((ready[0] && MAY(0)) || (ready[1] && MAY(1)))
#define DEADLY(t) ((st[t]==LEASED || st[t]==RUNNING) && owner[t]!=NONE && !alive[owner[t]])
inline ring() { if :: bells < MAXB -> bells++ :: else fi }
inline giveback() { if :: bell -> ring() :: else fi; bell = false }          /* visibility timeout of an undeleted bell */
#define MOVE(t,V,B) \
  at = t; \
  REQUIRE("table", RULE(V,st[t],B) > 0); \
  c_code { took[V][now.st[at]][B] = 1; }; \
  fence[t] = (RULE(V,st[t],B)==RAISE -> fence[t]+1 : fence[t]); \
  st[t] = B
#define END(t,V,B) \
  MOVE(t,V,B); terms[t]++; owner[t] = NONE; ready[t] = false; REQUIRE("one outcome", terms[t]<=1)
#define REQUEUE(t,V) MOVE(t,V,QUEUED); ready[t] = true; owner[t] = NONE; ring()

proctype Worker(byte w) {
  byte s, t, f; bool bell;
fresh: atomic { assert(nsess < NS); s = nsess; nsess++; alive[s] = true; used[s] = true; t = 0; f = 0; bell = false; goto end_i };
idle: atomic { t = 0; f = 0; bell = false };
end_i: do
  :: atomic { bells > 0 -> bells--; bell = true }; goto claim
#ifdef LOOK
  :: atomic { FREE(0) || FREE(1) -> goto claim }
#endif
#ifdef RECON
  :: atomic { st[0]==LEASED && owner[0]==s && alive[s] -> REQUEUE(0,RELEASE) }
  :: atomic { st[1]==LEASED && owner[1]==s && alive[s] -> REQUEUE(1,RELEASE) }
#endif
  :: atomic { !alive[s] -> used[s] = false; goto fresh }                     /* renewal refused: a new life */
  od;
claim: atomic {                                              /* FOR UPDATE SKIP LOCKED: the best row that nobody has locked */
#ifdef M_EARLYDEL
    bell = false;
#endif
    if :: FREE(0) -> t = 0; lck[0] = true
       :: !FREE(0) && FREE(1) -> t = 1; lck[1] = true
#ifdef RECHECK
       :: !FREE(0) && !FREE(1) && ROW && bell -> giveback(); goto idle
       :: !FREE(0) && !FREE(1) && !(ROW && bell) -> bell = false; goto idle
#else
       :: !FREE(0) && !FREE(1) -> bell = false; goto idle    /* an empty claim deletes its bell */
#endif
    fi };
  if :: atomic { bad > 0 -> bad--; lck[t] = false; giveback(); used[s] = false; goto fresh } :: skip fi;
  atomic { lck[t] = false;                                   /* commit; row re-checked under its lock, session FOR SHARE */
    if :: ready[t] && st[t]==QUEUED && alive[s] -> MOVE(t,CLAIM,LEASED); f = fence[t]; owner[t] = s; ready[t] = false
#ifndef M_BLIND
       :: !alive[s] -> giveback(); used[s] = false; goto fresh
       :: alive[s] && !(ready[t] && st[t]==QUEUED) -> giveback(); goto idle fi };
#else
       :: else -> giveback(); goto idle fi };                /* "no rows" taken for "empty": a dead session goes on claiming */
#endif
#ifdef AMB
  if :: atomic { ambB > 0 -> ambB--; giveback(); goto idle } :: skip fi;     /* reply lost; the worker asks again */
#endif
  if :: atomic { bad > 0 -> bad--; giveback(); used[s] = false; goto fresh } :: skip fi;
  atomic { bell = false;                                     /* deleted after the commit */
                                                   /* start gate, durable before user code */
#ifdef M_STARTID
    if :: !TERM(t) ->
#else
#ifdef M_STARTSTATE
    if :: st[t]==LEASED ->
#else
    if :: st[t]==LEASED && fence[t]==f && alive[s] ->
#endif
#endif
         MOVE(t,START,RUNNING); starts[t]++;
         REQUIRE("started once", starts[t]<=1);
         REQUIRE("nothing starts in a closed run", !closed)
       :: else -> goto idle fi };
  if :: atomic { bad > 0 -> bad--; used[s] = false; goto fresh } :: skip fi;   /* dies in user code */
  atomic {                                                   /* settle; a paused worker comes here late */
#ifdef M_SETTLEID
    if :: TERM(t) -> END(t,SETTLE,SUCCEEDED) :: !TERM(t) ->
#else
#ifdef M_SETTLESTATE
    if :: st[t]==RUNNING -> REQUIRE("the owner settles", fence[t]==f);
#else
    if :: st[t]==RUNNING && fence[t]==f ->
#endif
#endif
         if :: flag[t] -> END(t,SETTLE,CANCELLED) :: !flag[t] -> END(t,SETTLE,SUCCEEDED) fi
       :: else fi };
  goto idle
}

inline take(t) {
    if :: st[t]==LEASED -> REQUEUE(t,SWEEP)
#ifdef M_RERUNNING
       :: st[t]==RUNNING -> fence[t]++; st[t] = QUEUED; ready[t] = true; owner[t] = NONE; ring()
#else
       :: st[t]==RUNNING && flag[t] -> END(t,SWEEP,CANCELLED)
       :: st[t]==RUNNING && !flag[t] -> END(t,SWEEP,LOST)
#endif
       :: else fi }
#define EXPIRE(n) atomic { alive[n] && (!used[n] || bad > 0) -> if :: used[n] -> bad-- :: else fi; s = n; goto mark }
proctype Sweeper() { byte s; bool h0, h1;                    /* a crashed life expires; a live one may (SIGSTOP, partition) */
end_s: do
  :: EXPIRE(0) :: EXPIRE(1)
#if BUD > 0
  :: EXPIRE(2)
#endif
#if BUD > 1
  :: EXPIRE(3)
#endif
#ifndef M_ONESWEEP
  :: atomic { DEADLY(0) -> take(0) } :: atomic { DEADLY(1) -> take(1) }      /* second statement, repeated every tick */
#endif
  od;
mark:
#ifdef M_ONESWEEP
  atomic { h0 = (owner[0]==s); h1 = (owner[1]==s) };         /* the statement's snapshot */
  atomic { alive[s] = false; if :: h0 && owner[0]==s -> take(0) :: else fi; if :: h1 && owner[1]==s -> take(1) :: else fi };
#else
  atomic { alive[s] = false; s = 0 };
#endif
  goto end_s }

#ifdef NOLOSS
#define MAYBERING atomic { ring() }
#else
#define MAYBERING if :: atomic { ring() } :: skip fi         /* the server may die between commit and ring */
#endif
proctype Server() {
  atomic { if :: runopen -> MOVE(0,SUBMIT,QUEUED); ready[0] = true :: else fi }; MAYBERING;
  atomic { if :: runopen -> MOVE(1,SUBMIT,QUEUED); ready[1] = true :: else fi; submitted = true }; MAYBERING;
#ifdef RERING
end_r: do :: atomic { bells == 0 && (ready[0] || ready[1]) -> bells++ } od
#endif
}
#ifdef RINGLOCK
active proctype Ringer() { byte n = 2;                       /* UPDATE ready SET bell_due, ring, commit */
end_q: do :: atomic { n > 0 && ready[1] && !lck[1] -> lck[1] = true; n-- }; lck[1] = false od }
#endif
proctype Chaos() {
end_c: do :: atomic { mess > 0 && bells > 0 -> mess--; bells-- }
          :: atomic { mess > 0 && bells > 0 && bells < MAXB -> mess--; bells++ } od }
#define STOP(t,V) \
  if :: st[t]==QUEUED || st[t]==LEASED -> END(t,V,CANCELLED) \
     :: st[t]==RUNNING -> MOVE(t,V,RUNNING); flag[t] = true \
     :: else -> skip \
  fi
proctype User() {
  if :: true -> atomic { STOP(0,CANCEL) } :: skip fi;                     /* one task, or not */
  if :: skip                                                 /* the whole run, or not */
#ifdef M_CLOSE
     :: true -> atomic { STOP(0,CLOSE) }; atomic { STOP(1,CLOSE) }; atomic { runopen = false; closed = true }
#else
     :: runopen = false; atomic { STOP(0,CLOSE) }; atomic { STOP(1,CLOSE) }; closed = true
#endif
  fi }
proctype Monitor() { end_m: do :: timeout -> atomic { REQUIRE("every task ends", OVER); break } od }        /* quiescent with work left = stuck for ever */
init { BEGIN_SEARCH; atomic { run Worker(0); run Worker(1); run Sweeper(); run Server(); run Chaos(); run User(); run Monitor() } }
#ifdef LIVE
ltl live { [] (st[1]==QUEUED -> <> (st[1]!=QUEUED)) }
#endif
