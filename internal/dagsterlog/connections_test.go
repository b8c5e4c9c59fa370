package dagsterlog_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/chaos/proxy"
	"github.com/stepfleet/stepfleet/internal/dagsterlog"
)

// success is what a process writes at its end.
const success = `INSERT INTO event_logs (run_id, step_key, dagster_event_type) VALUES ('r', 'a', 'STEP_SUCCESS')`

// network puts a proxy between processes and PostgreSQL, and returns the DSN that leads through it.
func (f *fixture) network() (edge *proxy.Edge, dsn string) {
	f.Helper()
	u, err := url.Parse(f.dsn)
	if err != nil {
		f.Fatal(err)
	}
	edge = proxy.NewEdge("dagster", func() []string { return []string{u.Host} })
	listener, err := proxy.Listen(edge)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = listener.Close() })
	through := *u
	through.Host = listener.Addr()
	return edge, through.String()
}

// process connects as the step's process with that number does.
func (f *fixture) process(dsn string, number int) *pgx.Conn {
	f.Helper()
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		f.Fatal(err)
	}
	cfg.RuntimeParams["options"] = "-c application_name=" + stepfleet.ConnectionNameOf("worker", number)
	conn, err := pgx.ConnectConfig(f.Context(), cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = conn.Close(f.Context()) })
	return conn
}

// write has the process write its end, and does not wait for it.
func (f *fixture) write(conn *pgx.Conn) (wrote chan error) {
	wrote = make(chan error, 1)
	ctx := f.Context()
	go func() {
		_, err := conn.Exec(ctx, success)
		wrote <- err
	}()
	return wrote
}

// await looks until the condition holds.
func (f *fixture) await(what string, holds func() bool) {
	f.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			f.Fatal("in vain: ", what)
		}
	}
}

// count counts what the query finds.
func (f *fixture) count(query string, args ...any) (n int) {
	f.Helper()
	if err := f.conn.QueryRow(f.Context(), "SELECT count(*) FROM "+query, args...).Scan(&n); err != nil {
		f.Fatal(err)
	}
	return n
}

func (f *fixture) living(conn *pgx.Conn) bool {
	f.Helper()
	return f.count("pg_stat_activity WHERE pid = $1", conn.PgConn().PID()) == 1
}

// final asks until the answer about a process that has been gone since then is final.
func (f *fixture) final(log *dagsterlog.Log, o stepfleet.Orphan, since time.Time) (end stepfleet.Ending) {
	f.Helper()
	f.await("a final answer", func() bool {
		o.Gone = time.Since(since)
		end = f.ending(log, o)
		return end.Final
	})
	return end
}

// named is the orphan of the processes that go by that number of the worker.
func named(number int) stepfleet.Orphan {
	o := orphan("r", "a", 0, 0, 0)
	o.Connections, o.InFlight = stepfleet.ConnectionNameOf("worker", number), time.Hour
	return o
}

// What the network has held back since the process was killed must not come about once it was said that
// there is no end.
func TestWhatTheNetworkHoldsBackComesAboutNoMore(t *testing.T) {
	for name, number := range map[string]int{"of the process": 42, "of any of the worker's": 0} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			edge, dsn := f.network()
			conn := f.process(dsn, 42)
			stall, err := edge.Inject(proxy.Fault{Mode: proxy.Stall})
			if err != nil {
				t.Fatal(err)
			}
			defer stall.Heal()
			wrote := f.write(conn)
			f.await("the statement on its way", func() bool { return stall.Hits() == 1 })
			killed := time.Now()
			_ = conn.PgConn().Conn().Close()
			<-wrote
			if end := f.final(f.log, named(number), killed); end.Event != "" {
				t.Fatalf("the log has %q already", end.Event)
			}
			stall.Heal()
			f.await("the end of the connection", func() bool { return edge.Connections() == 0 && !f.living(conn) })
			if n := f.count("event_logs"); n != 0 {
				t.Error("the end came about after it was said that there is none")
			}
		})
	}
}

// A statement that has reached PostgreSQL has the time that it may take, as behind a lock.
func TestAStatementThatRunsIsEndedOnceItMayRunNoMore(t *testing.T) {
	f := newFixture(t)
	conn := f.process(f.dsn, 42)
	lock, err := f.connect().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(t.Context(), "LOCK event_logs IN SHARE MODE"); err != nil {
		t.Fatal(err)
	}
	wrote := f.write(conn)
	f.await("the statement behind the lock", func() bool {
		return f.count("pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock'", conn.PgConn().PID()) == 1
	})
	o, killed := named(42), time.Now()
	o.InFlight = time.Second
	for o.Gone < o.InFlight*9/10 {
		if end := f.ending(f.log, o); end.Final || !f.living(conn) {
			t.Fatalf("%s after the end of the process its statement was not waited for: %+v", o.Gone, end)
		}
		o.Gone = time.Since(killed)
	}
	f.final(f.log, o, killed)
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; err == nil || f.count("event_logs") != 0 {
		t.Errorf("the end came about after it was said that there is none: %v", err)
	}
}

// One that may see names and end nothing waits for others to do so.
func TestARoleThatMayEndNothingWaits(t *testing.T) {
	f := newFixture(t)
	reader := f.login()
	f.exec(`GRANT SELECT ON event_logs TO ` + readerRole)
	conn := f.process(f.dsn, 42)
	killed := time.Now()
	o := named(42)
	o.Gone = time.Hour
	for range 3 {
		if end := f.ending(reader, o); end.Final {
			t.Fatal("final while a connection of the process lives")
		}
	}
	if !f.living(conn) {
		t.Fatal("a role without any right has ended a connection")
	}
	_ = conn.Close(t.Context())
	f.final(reader, o, killed)
}

// Only what the process may have left is ended.
func TestOthersConnectionsAreLeftAlone(t *testing.T) {
	f := newFixture(t)
	others := map[string]*pgx.Conn{
		"of no name": f.connect(), "of a process whose number begins alike": f.process(f.dsn, 421),
		"of one that nobody has": f.process(f.dsn, 0),
	}
	killed := time.Now()
	time.Sleep(10 * time.Millisecond) // of the database's clock: what begins now is younger than the end
	others["made since"] = f.process(f.dsn, 42)
	f.final(f.log, named(42), killed)
	for name, conn := range others {
		if !f.living(conn) {
			t.Errorf("the connection %s was ended", name)
		}
	}
}
