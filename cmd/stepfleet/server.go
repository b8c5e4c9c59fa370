package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stepfleet/stepfleet"
	"github.com/stepfleet/stepfleet/internal/api"
	"github.com/stepfleet/stepfleet/internal/dagsterapi"
	"github.com/stepfleet/stepfleet/internal/dagsterlog"
	"github.com/stepfleet/stepfleet/internal/dispatch"
	"github.com/stepfleet/stepfleet/internal/failpoint"
	"github.com/stepfleet/stepfleet/internal/metrics"
	"github.com/stepfleet/stepfleet/internal/outage"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/sqs"
)

type serverCmd struct {
	Listen       string   `help:"Address of the API." default:"127.0.0.1:8630" env:"STEPFLEET_LISTEN"`
	Advertise    string   `help:"URL by which workers reach this replica; http://LISTEN if empty, with the host name for an address like 0.0.0.0." env:"STEPFLEET_ADVERTISE_URL"`
	Hosts        []string `name:"allow-host" help:"Host header to answer besides loopback names and the advertised one." env:"STEPFLEET_ALLOW_HOSTS"`
	Queue        []string `help:"Queue that tasks may name; repeat for more." default:"default" env:"STEPFLEET_QUEUES"`
	QueuePrefix  string   `help:"What SQS queue names begin with." default:"stepfleet-" env:"STEPFLEET_QUEUE_PREFIX"`
	QueueFIFO    bool     `name:"queue-fifo" help:"The SQS queues are FIFO queues: their names end in .fifo." env:"STEPFLEET_QUEUE_FIFO"`
	CreateQueues bool     `help:"Create SQS queues that do not exist." env:"STEPFLEET_CREATE_QUEUES"`
	DagsterURL   string   `name:"dagster-url" help:"Dagster's webserver: runs that have ended there are closed here, and cancelled runs whose run worker is gone are ended there. Without it the first is left to executors, the second to Dagster's run monitoring." env:"STEPFLEET_DAGSTER_URL"`
	DagsterDSN   string   `name:"dagster-dsn-file" help:"File with the URL of Dagster's database, for a role that may read event_logs and, to be sure of what the network holds back, end connections (Dagster's own, or a member of pg_signal_backend and pg_read_all_stats): the server asks there how steps ended whose workers died. Without it, it asks Dagster's webserver, for at most a minute." env:"STEPFLEET_DAGSTER_DSN_FILE"`
	Prepare      bool     `help:"Keep statements prepared; not behind a pooler that does not track them." env:"STEPFLEET_PREPARE"`
	MaxPayload   int      `help:"Largest payload of a step, in bytes; the default is the most." default:"8388608" env:"STEPFLEET_MAX_PAYLOAD_BYTES"`

	lifetimeFlags `embed:""`
}

// Run serves until it is told to stop. It starts without PostgreSQL or SQS and says so on /readyz.
func (c *serverCmd) Run(g *globals) error {
	lifetimes, err := c.lifetimes()
	if err != nil {
		return err
	}
	secret, err := token()
	if err != nil {
		return err
	}
	dsn, err := databaseURL()
	if err != nil {
		return err
	}
	listener, err := listen(g.ctx, c.Listen, secret)
	if err != nil {
		return err
	}
	defer listener.Close()
	counted := metrics.New(version)
	database := outage.New(counted.Breaker("postgres", g.log))
	ledger, err := postgres.Open(g.ctx, dsn, postgres.Options{
		MayRepeat: database.MayRepeat, Logger: g.log, AppName: "stepfleet server", Prepare: c.Prepare,
	})
	if err != nil {
		return fmt.Errorf("STEPFLEET_DATABASE_URL: %w", err)
	}
	defer ledger.Close()
	bells, err := sqs.Open(g.ctx, sqs.Options{Prefix: c.QueuePrefix, FIFO: c.QueueFIFO, OnRequest: counted.Requests(), Logger: g.log})
	if err != nil {
		return err
	}
	host, _ := os.Hostname() // mostly a name for people; empty is fine
	address, err := advertised(c.Advertise, listener.Addr(), host)
	if err != nil {
		return err
	}
	events, patience, closeEvents, err := c.eventLog(g.ctx)
	if err != nil {
		return err
	}
	defer closeEvents()
	server, err := dispatch.New(dispatch.Config{
		Name: fmt.Sprintf("%s:%d", host, os.Getpid()), URL: address.String(), Queues: c.Queue,
		Lifetimes: lifetimes, MaxPayloadBytes: c.MaxPayload, Dagster: c.dagster(g, counted), Logger: g.log,
		EventLog: failpoint.EventLog(events), EventLogPatience: patience,
	}, watchedLedger(counted, ledger, database), watchedRinger(g, counted, ringer{bells, c.CreateQueues}))
	if err != nil {
		return err
	}
	g.log.Info("server listens", "url", address.String(), "queues", c.Queue)
	work, ctx := errgroup.WithContext(g.ctx)
	work.Go(func() error { return server.Run(ctx) })
	work.Go(func() error { tellUnfit(ctx, g.log, ledger.Check); return nil })
	if c.CreateQueues {
		work.Go(func() error { createQueues(ctx, g.log, bells, c.Queue); return nil })
	}
	work.Go(func() error {
		hosts := append([]string{address.Hostname()}, c.Hosts...)
		handler := api.New(api.Config{Token: secret, Hosts: hosts, Metrics: counted.Handler(), Logger: g.log}, server)
		return serve(ctx, listener, counted.HTTP(handler))
	})
	return work.Wait()
}

// unfitEvery is how often a database that does not fit is looked at again.
const unfitEvery = 5 * time.Second

// tellUnfit says in the log what is wrong with the ledger's database, until it fits: most of all that
// it may lose what this server acknowledges. Workers get no session from it; a submit is answered all
// the same where it can be recorded. That it is away is not said here.
func tellUnfit(ctx context.Context, log *slog.Logger, check func(context.Context) error) {
	told := ""
	for {
		err := check(ctx)
		switch {
		case err == nil && told != "":
			log.Info("the ledger's database fits now")
			return
		case err == nil || ctx.Err() != nil:
			return
		case errors.Is(err, stepfleet.ErrSchema) && err.Error() != told:
			told = err.Error()
			log.Error("the ledger's database does not fit; workers get no session until it does", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(unfitEvery):
		}
	}
}

// watchedLedger is the server's ledger, counted and behind its breaker.
func watchedLedger(m *metrics.Metrics, ledger *postgres.Ledger, database *outage.Breaker) stepfleet.Ledger {
	m.Pool("server", func() metrics.Pool { return metrics.Pool(ledger.PoolStats()) })
	watched := outage.Ledger(m.Server(failpoint.Ledger(ledger)), database)
	m.Workers(watched)
	return watched
}

func watchedRinger(g *globals, m *metrics.Metrics, bells stepfleet.Ringer) stepfleet.Ringer {
	return outage.Ringer(m.Ringer(failpoint.Ringer(bells)), outage.New(m.Breaker("sqs", g.log)))
}

// advertised is the URL by which workers reach this replica: the one given, or else where it
// listens. An address that stands for all of a machine's is nobody's to connect to, so the host's
// name takes its place.
func advertised(given string, listens net.Addr, host string) (*url.URL, error) {
	if given != "" {
		u, err := url.Parse(given)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.TrimSuffix(u.Path, "/") != "" {
			return nil, fmt.Errorf("--advertise %q: use http://host:port", given)
		}
		return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
	}
	ip, port, err := net.SplitHostPort(listens.String())
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", listens, err)
	}
	if net.ParseIP(ip).IsUnspecified() {
		if host == "" {
			return nil, fmt.Errorf("--listen %s: this machine has no name: say with --advertise how workers reach it", listens)
		}
		ip = host
	}
	return &url.URL{Scheme: "http", Host: net.JoinHostPort(ip, port)}, nil
}

func (c *serverCmd) dagster(g *globals, m *metrics.Metrics) stepfleet.Orchestrator {
	if c.DagsterURL == "" {
		return nil
	}
	return outage.Orchestrator(dagsterapi.New(c.DagsterURL), outage.New(m.Breaker("dagster", g.log)))
}

// logPatience bounds how long verdicts wait for Dagster's webserver: runs must end without one, too.
const logPatience = 60 * time.Second

// eventLog is where the server reads how attempts ended, and how long it waits for that to answer.
// Dagster's database is waited for as long as it takes: without it nothing of Dagster's goes on.
func (c *serverCmd) eventLog(ctx context.Context) (log stepfleet.EventLog, patience time.Duration, closeLog func(), err error) {
	switch {
	case c.DagsterDSN != "":
		dsn, err := secretFile(c.DagsterDSN)
		if err != nil {
			return nil, 0, nil, fmt.Errorf("--dagster-dsn-file: %w", err)
		}
		log, err := dagsterlog.Open(ctx, dsn)
		if err != nil {
			return nil, 0, nil, fmt.Errorf("--dagster-dsn-file: %w", err)
		}
		return log, 0, log.Close, nil
	case c.DagsterURL != "":
		return dagsterapi.New(c.DagsterURL), logPatience, func() {}, nil
	}
	return nil, 0, func() {}, nil
}

// createQueues makes the queues before the first bell, so that workers need not find them missing.
// One that cannot be made now is made by the ring that finds it missing.
func createQueues(ctx context.Context, log *slog.Logger, bells *sqs.Bells, queues []string) {
	for _, queue := range queues {
		if err := bells.EnsureQueue(ctx, queue); err != nil && ctx.Err() == nil {
			log.Warn("create queue", "queue", queue, "err", err)
		}
	}
}

// ringer makes queues that are missing, where it was told to: in development, and after a local
// SQS that keeps everything in memory was started again.
type ringer struct {
	*sqs.Bells
	create bool
}

func (r ringer) Ring(ctx context.Context, queue string, n int) error {
	err := r.Bells.Ring(ctx, queue, n)
	if !r.create || !errors.Is(err, stepfleet.ErrUnknownQueue) {
		return err
	}
	if err := r.EnsureQueue(ctx, queue); err != nil {
		return err
	}
	return r.Bells.Ring(ctx, queue, n)
}
