// Package pgrelay lends step processes PostgreSQL connections that stay open from one step to the
// next, as a pooler in session mode does.
//
// Every step is a process of its own, and Dagster's storage in it would connect anew: a TLS
// handshake, a login and a fresh server process that has yet to learn the tables, which costs the
// server more than the events of a small step. Here a process connects to a socket of this machine
// instead, and gets a connection that an earlier one has left behind, with its session reset.
//
// Nobody is let in by the relay itself. Who connects says, in place of a password, the connection
// string that it would have used, and gets only connections that were made with the same one. The
// socket is in a directory of this user alone.
package pgrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"regexp"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Port is what to name to libpq beside the directory; it looks for a file of that port's name there.
const Port = 5432

// Config is what a Relay needs to know.
type Config struct {
	// Parent is a directory of this user's alone, in which the relay makes one of its own. Where
	// that makes too long a path for a socket, the relay is in the directory for temporary files.
	Parent string
	// MayWrite says whether the processes may still send something to the database: not once what
	// they work on belongs to somebody else.
	MayWrite func() bool
	// KeepIdle is how long a connection that nobody uses is kept; 0 means DefaultKeepIdle.
	KeepIdle time.Duration
	Logger   *slog.Logger
}

const (
	// DefaultKeepIdle outlasts the gaps between the steps of a run that goes on.
	DefaultKeepIdle = time.Minute
	// maxAge renews connections in the end: a server process keeps what it has learned of tables.
	maxAge = time.Hour
	// connectTimeout is for connection strings that name none.
	connectTimeout = 30 * time.Second
	// greetTimeout bounds what a client takes to say who it is, resetTimeout what the server takes
	// to forget a session, and pingTimeout what it takes to say that it is there: a client waits.
	greetTimeout = 10 * time.Second
	resetTimeout = 10 * time.Second
	pingTimeout  = time.Second
)

// Relay accepts clients on its socket.
type Relay struct {
	cfg      Config
	log      *slog.Logger
	home     *home
	listener net.Listener

	mu      sync.Mutex
	idle    map[string][]*backend // by what they were connected with; the last one was used last
	used    map[*backend]struct{}
	clients map[net.Conn]struct{}
	closed  bool

	sessions sync.WaitGroup
}

// Listen makes the socket. The caller must run the relay.
func Listen(cfg Config) (*Relay, error) {
	if cfg.KeepIdle == 0 {
		cfg.KeepIdle = DefaultKeepIdle
	}
	home, err := makeHome(cfg.Parent)
	if err != nil {
		return nil, fmt.Errorf("make the relay's directory: %w", err)
	}
	listener, err := net.Listen("unix", home.socket())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for step processes: %w", err), home.remove())
	}
	return &Relay{
		cfg: cfg, log: cfg.Logger, home: home, listener: listener,
		idle: map[string][]*backend{}, used: map[*backend]struct{}{}, clients: map[net.Conn]struct{}{},
	}, nil
}

// Dir is the directory of the socket: the host to name to libpq. It is empty for a nil Relay.
func (r *Relay) Dir() string {
	if r == nil {
		return ""
	}
	return r.home.dir
}

// Run serves clients until ctx ends, and cuts those that are left off. A nil Relay has none.
func (r *Relay) Run(ctx context.Context) error {
	if r == nil {
		return nil
	}
	defer r.home.remove()
	defer r.sessions.Wait()
	stop := context.AfterFunc(ctx, r.close)
	defer stop()
	defer r.close()
	r.sessions.Go(func() { r.keep(ctx) })
	for {
		client, err := r.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept a step process: %w", err)
		}
		if r.admit(client) {
			r.sessions.Go(func() { r.serve(ctx, client) })
		}
	}
}

func (r *Relay) admit(client net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		client.Close()
		return false
	}
	r.clients[client] = struct{}{}
	return true
}

func (r *Relay) dismiss(client net.Conn) {
	client.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.clients, client)
}

// close ends everything. It may be called more than once.
func (r *Relay) close() {
	r.listener.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for client := range r.clients {
		client.Close()
	}
	for b := range r.used {
		b.close()
	}
	for key, backends := range r.idle {
		for _, b := range backends {
			b.close()
		}
		delete(r.idle, key)
	}
}

// serve is one client from its first message to its end.
func (r *Relay) serve(ctx context.Context, client net.Conn) {
	defer r.dismiss(client)
	_ = client.SetDeadline(time.Now().Add(greetTimeout)) // an error shows at the read
	who, err := r.greet(client)
	if err != nil || who == nil {
		if err != nil {
			r.log.Debug("a client of the database relay left before its login", "err", err)
		}
		return
	}
	_ = client.SetDeadline(time.Time{})
	b, err := r.take(ctx, who)
	if err != nil {
		r.log.Debug("no database connection for a step process; it tries by itself", "err", err)
		refuse(client, err)
		return
	}
	clean := b.welcome(client) == nil && carry(client, b, r.cfg.MayWrite)
	r.give(who, b, clean)
}

// login is what a client asks for.
type login struct {
	dsn    string
	params map[string]string
}

// key tells connections apart that may not serve in each other's place. Whose they are is said anew with
// each client.
func (l *login) key() string {
	params := maps.Clone(l.params)
	if options, ok := params["options"]; ok {
		params["options"] = processName.ReplaceAllString(options, "$1")
	}
	return fmt.Sprintf("%q %q", l.dsn, params) // %q of a map is sorted
}

// processName is how a client's options name its connections: by what those of its worker begin with, and
// its own number (stepfleet.ConnectionNameOf).
var processName = regexp.MustCompile(`(-c application_name=(stepfleet/[0-9a-f]+)/)([0-9]+)`)

// names are what the connection is called while the client has it, and while nobody has; nothing where the
// client names none.
func (l *login) names() (taken, idle string) {
	if m := processName.FindStringSubmatch(l.params["options"]); m != nil {
		return m[2] + "/" + m[3], m[2]
	}
	return "", ""
}

// maxLogin bounds the message with the connection string: room is made for what it says to have, before
// it is there.
const maxLogin = 64 << 10

// greet reads who connects. It returns nil for a client that only wants a statement cancelled.
func (r *Relay) greet(client net.Conn) (*login, error) {
	wire := pgproto3.NewBackend(client, client)
	wire.SetMaxBodyLen(maxLogin)
	for {
		first, err := wire.ReceiveStartupMessage()
		if err != nil {
			return nil, fmt.Errorf("read the startup message: %w", err)
		}
		switch m := first.(type) {
		case *pgproto3.CancelRequest:
			return nil, r.cancel(m.ProcessID, m.SecretKey)
		case *pgproto3.StartupMessage:
			return askForDSN(wire, m.Parameters)
		default: // TLS or GSSAPI, which this socket has no need of
			if _, err := client.Write([]byte{'N'}); err != nil {
				return nil, err
			}
		}
	}
}

func askForDSN(wire *pgproto3.Backend, params map[string]string) (*login, error) {
	if params["replication"] != "" {
		return nil, errors.New("the relay carries no replication")
	}
	wire.Send(&pgproto3.AuthenticationCleartextPassword{})
	if err := wire.SetAuthType(pgproto3.AuthTypeCleartextPassword); err != nil {
		return nil, err
	}
	if err := wire.Flush(); err != nil {
		return nil, err
	}
	answer, err := wire.Receive()
	if err != nil {
		return nil, fmt.Errorf("read the connection string: %w", err)
	}
	password, ok := answer.(*pgproto3.PasswordMessage)
	if !ok {
		return nil, fmt.Errorf("a %T where the connection string was due", answer)
	}
	return &login{dsn: password.Password, params: params}, nil
}

// refuse says why there is no connection, in PostgreSQL's words where it has answered.
func refuse(client net.Conn, err error) {
	said := &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "08006", Message: err.Error()}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		said.Code, said.Message, said.Detail, said.Hint = pg.Code, pg.Message, pg.Detail, pg.Hint
	}
	wire := pgproto3.NewBackend(client, client)
	wire.Send(said)
	_ = wire.Flush() // it may have gone
}

// cancel has the server cancel the statement of a client that has asked so on another connection.
func (r *Relay) cancel(pid uint32, secret []byte) error {
	b := r.using(pid, secret)
	if b == nil {
		return nil // it has ended meanwhile
	}
	ctx, done := context.WithTimeout(context.Background(), greetTimeout)
	defer done()
	conn, err := pgconn.Construct(b.hijacked)
	if err == nil {
		err = conn.CancelRequest(ctx)
	}
	if err != nil {
		return fmt.Errorf("cancel a statement: %w", err)
	}
	return nil
}
