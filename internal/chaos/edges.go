package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/stepfleet/stepfleet/internal/chaos/proxy"
	"github.com/stepfleet/stepfleet/internal/devstack"
)

// network is every connection of the stack that can misbehave, each through a proxy of its own.
//
//	worker-PG, renewals-PG    a worker's two pools to the ledger, told apart by their application name
//	child-PG                  a worker's steps and run workers to Dagster's storage, by the relay
//	worker-SQS                a worker's
//	worker-server             the workers' notifications to a server
//	server-PG, server-SQS     a server's, to the ledger and to SQS
//	server-log                a server's to Dagster's database, for verdicts
//	server-webserver          a server's to Dagster's webserver
//	executor-server           a worker's run workers, and Dagster's own processes, to the servers, which
//	                          take turns as behind a load balancer
//
// What Dagster's own processes do with its database, and with each other, is not broken here: that is
// Dagster's, and PostgreSQL and those processes are hit as a whole.
type network struct {
	edges     []*proxy.Edge
	listeners []*proxy.Listener
	ledger    map[string]string // process -> host:port of its ledger
	dagster   map[string]string // worker or server -> of Dagster's storage
	webserver map[string]string // server -> of Dagster's webserver
	sqs       map[string]string
	api       map[string]string // process -> host:port of the servers' API
	advertise map[string]string // server -> host:port for workers

	mu sync.Mutex
	at devstack.Endpoints
}

// renewals is the application name by which a renewal's connection is known.
const renewals = "stepfleet worker renewals"

func serverName(i int) string {
	if i == 0 {
		return "server"
	}
	return fmt.Sprintf("server-%d", i+1)
}

func workerName(i int) string { return fmt.Sprintf("worker-%d", i+1) }

// outsiders are Dagster's own processes: they share one way to the servers.
const outsiders = "dagster"

func newNetwork(servers, workers int) (*network, error) {
	n := &network{
		ledger: map[string]string{}, dagster: map[string]string{}, sqs: map[string]string{},
		api: map[string]string{}, advertise: map[string]string{}, webserver: map[string]string{},
	}
	postgres := func() []string { return one(n.endpoints().Database.Address) }
	sqs := func() []string { return one(strings.TrimPrefix(n.endpoints().AWS, "http://")) }
	all := func() []string { return n.endpoints().Servers }
	webserver := func() []string { return one(strings.TrimPrefix(n.endpoints().Dagster, "http://")) }
	err := n.listen(n.api, outsiders, "executor-server", all)
	for i := range servers {
		name := serverName(i)
		own := func() []string {
			if at := n.endpoints(); i < len(at.Servers) {
				return at.Servers[i : i+1]
			}
			return nil
		}
		err = errors.Join(
			err,
			n.listen(n.ledger, name, "server-PG", postgres),
			n.listen(n.sqs, name, "server-SQS", sqs),
			n.listen(n.dagster, name, "server-log", postgres),
			n.listen(n.webserver, name, "server-webserver", webserver),
			n.listen(n.advertise, name, "worker-server", own),
		)
	}
	for i := range workers {
		name := workerName(i)
		err = errors.Join(
			err,
			n.listenPools(name, postgres),
			n.listen(n.dagster, name, "child-PG", postgres),
			n.listen(n.sqs, name, "worker-SQS", sqs),
			n.listen(n.api, name, "executor-server", all),
		)
	}
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func one(address string) []string {
	if address == "" {
		return nil
	}
	return []string{address}
}

func (n *network) edge(kind, name string, targets func() []string) *proxy.Edge {
	e := proxy.NewEdge(kind+"/"+name, targets)
	n.edges = append(n.edges, e)
	return e
}

func (n *network) listen(by map[string]string, name, kind string, targets func() []string) error {
	l, err := proxy.Listen(n.edge(kind, name, targets))
	if err != nil {
		return err
	}
	n.listeners = append(n.listeners, l)
	by[name] = l.Addr()
	return nil
}

// listenPools opens the one address at which a worker has its ledger, for both of its edges.
func (n *network) listenPools(name string, postgres func() []string) error {
	claims, renewing := n.edge("worker-PG", name, postgres), n.edge("renewals-PG", name, postgres)
	l, err := proxy.ListenMany(func(first []byte) *proxy.Edge {
		if bytes.Contains(first, []byte(renewals)) {
			return renewing
		}
		return claims
	})
	if err != nil {
		return err
	}
	n.listeners = append(n.listeners, l)
	n.ledger[name] = l.Addr()
	return nil
}

// moved keeps where things are now.
func (n *network) moved(at devstack.Endpoints) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at = at
}

func (n *network) endpoints() devstack.Endpoints {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.at
}

// isQuiet says that little passes on an edge: a server asks Dagster only about what nobody can speak for.
func (n *network) isQuiet(edge *proxy.Edge) bool {
	return strings.HasPrefix(edge.Name, "server-log/") || strings.HasPrefix(edge.Name, "server-webserver/")
}

// of returns the edges of these kinds that are a process's.
func (n *network) of(name string, kinds ...string) []*proxy.Edge {
	var found []*proxy.Edge
	for _, e := range n.edges {
		for _, kind := range kinds {
			if e.Name == kind+"/"+name {
				found = append(found, e)
			}
		}
	}
	return found
}

// environment returns the variables that send a process through its proxies.
func (n *network) environment(process string, at devstack.Endpoints) []string {
	api, ok := n.api[process]
	if !ok {
		api = n.api[outsiders]
	}
	ledger, storage := at.Database.WorkerURL, n.dagster[process]
	if isServer(process) {
		ledger, storage = at.Database.ServerURL, "" // that one has it from a file
	}
	environ := []string{"STEPFLEET_URL=http://" + api}
	for _, way := range []struct{ variable, through, url string }{
		{"STEPFLEET_DATABASE_URL", n.ledger[process], ledger},
		{"DAGSTER_DATABASE_URL", storage, at.Database.DagsterURL},
		{"AWS_ENDPOINT_URL_SQS", n.sqs[process], at.AWS},
		{"STEPFLEET_ADVERTISE_URL", n.advertise[process], "http://server"},
		{"STEPFLEET_DAGSTER_URL", n.webserver[process], at.Dagster},
	} {
		if way.through != "" {
			environ = append(environ, way.variable+"="+via(way.url, way.through))
		}
	}
	return environ
}

func isServer(process string) bool { return strings.HasPrefix(process, serverName(0)) }

// via returns an address with another host.
func via(dsn, address string) string {
	u, err := url.Parse(dsn)
	if err != nil {
		return dsn // the stack's own: it parses
	}
	u.Host = address
	return u.String()
}

func (n *network) Close() error {
	var errs []error
	for _, l := range n.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
