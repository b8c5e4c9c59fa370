/* The states of a task (new: not submitted) and the changes that the ledger allows, for all models here. The lines
   between the two marks are stepfleet.Transitions (state.go): transitions_test.go compares them. */
#define NEW        0
#define QUEUED     1
#define LEASED     2
#define RUNNING    3
#define SUCCEEDED  4
#define FAILED     5
#define CANCELLED  6
#define LOST       7
#define DEAD       8
#define TERMINAL(x) ((x) >= SUCCEEDED)

#define SUBMIT     0
#define CLAIM      1
#define START      2
#define RELEASE    3
#define SETTLE     4
#define SWEEP      5
#define REVOKE     6
#define CANCEL     7
#define CLOSE      8
#define ADJUDICATE 9
#define ABANDON    10
#define REPAIR     11
#define POISON     12

#define ZERO  1
#define KEEP  2
#define RAISE 3
#define IS(v,a,b, V,A,B, F) + (((v)==V && (a)==A && (b)==B) * F)

/* What becomes of the fence when verb v takes a task from state a to state b; 0: no such change. */
#define RULE(v,a,b) (0 \
  /* transitions: begin */ \
  IS(v,a,b, SUBMIT,     NEW,       QUEUED,    ZERO)  \
  IS(v,a,b, CLAIM,      QUEUED,    LEASED,    RAISE) \
  IS(v,a,b, START,      LEASED,    RUNNING,   KEEP)  \
  IS(v,a,b, RELEASE,    LEASED,    QUEUED,    RAISE) \
  IS(v,a,b, SETTLE,     RUNNING,   SUCCEEDED, KEEP)  \
  IS(v,a,b, SETTLE,     RUNNING,   FAILED,    KEEP)  \
  IS(v,a,b, SETTLE,     RUNNING,   CANCELLED, KEEP)  \
  IS(v,a,b, SETTLE,     RUNNING,   LOST,      KEEP)  \
  IS(v,a,b, SWEEP,      LEASED,    QUEUED,    RAISE) \
  IS(v,a,b, SWEEP,      RUNNING,   LOST,      RAISE) \
  IS(v,a,b, SWEEP,      RUNNING,   CANCELLED, RAISE) \
  IS(v,a,b, REPAIR,     RUNNING,   SUCCEEDED, RAISE) \
  IS(v,a,b, REPAIR,     RUNNING,   FAILED,    RAISE) \
  IS(v,a,b, REPAIR,     RUNNING,   CANCELLED, RAISE) \
  IS(v,a,b, POISON,     QUEUED,    DEAD,      RAISE) \
  IS(v,a,b, POISON,     LEASED,    DEAD,      RAISE) \
  IS(v,a,b, ABANDON,    RUNNING,   RUNNING,   RAISE) \
  IS(v,a,b, REVOKE,     RUNNING,   RUNNING,   RAISE) \
  IS(v,a,b, CANCEL,     QUEUED,    CANCELLED, RAISE) \
  IS(v,a,b, CANCEL,     LEASED,    CANCELLED, RAISE) \
  IS(v,a,b, CANCEL,     RUNNING,   RUNNING,   KEEP)  \
  IS(v,a,b, CLOSE,      QUEUED,    CANCELLED, RAISE) \
  IS(v,a,b, CLOSE,      LEASED,    CANCELLED, RAISE) \
  IS(v,a,b, CLOSE,      RUNNING,   RUNNING,   KEEP)  \
  IS(v,a,b, ADJUDICATE, SUCCEEDED, SUCCEEDED, KEEP)  \
  IS(v,a,b, ADJUDICATE, FAILED,    FAILED,    KEEP)  \
  IS(v,a,b, ADJUDICATE, CANCELLED, CANCELLED, KEEP)  \
  IS(v,a,b, ADJUDICATE, LOST,      LOST,      KEEP)  \
  IS(v,a,b, ADJUDICATE, DEAD,      DEAD,      KEEP)  \
  /* transitions: end */ \
)

/* A search notes which lines of the table it took, and says so at its end. */
c_decl {
  static unsigned char took[16][16][16];
  static void say_took(void) {
    int v, a, b;
    for (v = 0; v < 16; v++) for (a = 0; a < 16; a++) for (b = 0; b < 16; b++)
      if (took[v][a][b]) printf("took %d %d %d\n", v, a, b);
  }
}
#define BEGIN_SEARCH c_code { atexit(say_took); }

/* A property by its name: the run says which one was violated. */
#define REQUIRE(name, cond) \
  if :: (cond) -> skip :: else -> c_code { printf("violated: " name "\n"); }; assert(false) fi
