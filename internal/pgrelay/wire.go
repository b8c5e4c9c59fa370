package pgrelay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// backend is a connection to PostgreSQL that has logged in.
type backend struct {
	hijacked *pgconn.HijackedConn
	conn     net.Conn
	r        *bufio.Reader
	w        *bufio.Writer
	born     time.Time
	since    time.Time // when it was last given back
}

// bufferBytes holds the messages of most events whole.
const bufferBytes = 16 << 10

func newBackend(h *pgconn.HijackedConn) *backend {
	return &backend{
		hijacked: h, conn: h.Conn, born: time.Now(),
		r: bufio.NewReaderSize(h.Conn, bufferBytes), w: bufio.NewWriterSize(h.Conn, bufferBytes),
	}
}

func (b *backend) close() { b.conn.Close() }

// welcome tells the client what the server has told at the login.
func (b *backend) welcome(client net.Conn) error {
	wire := pgproto3.NewBackend(client, client)
	wire.Send(&pgproto3.AuthenticationOk{})
	for name, value := range b.hijacked.ParameterStatuses {
		wire.Send(&pgproto3.ParameterStatus{Name: name, Value: value})
	}
	wire.Send(&pgproto3.BackendKeyData{ProcessID: b.hijacked.PID, SecretKey: b.hijacked.SecretKey})
	wire.Send(&pgproto3.ReadyForQuery{TxStatus: idleStatus})
	return wire.Flush()
}

// ask sends simple queries at once, on a connection that nobody uses, and reads their answers to the end.
func (b *backend) ask(timeout time.Duration, queries ...string) error {
	_ = b.conn.SetDeadline(time.Now().Add(timeout)) // an error shows below
	var messages []byte
	for _, query := range queries {
		var err error
		if messages, err = (&pgproto3.Query{String: query}).Encode(messages); err != nil {
			return err
		}
	}
	if _, err := b.conn.Write(messages); err != nil {
		return err
	}
	for _, query := range queries {
		if err := b.answer(query); err != nil {
			return err
		}
	}
	return b.conn.SetDeadline(time.Time{})
}

// answer reads the answer to one query to the end.
func (b *backend) answer(query string) error {
	for {
		kind, length, err := peekHeader(b.r)
		if err != nil {
			return err
		}
		if kind == 'E' {
			return fmt.Errorf("PostgreSQL refuses %q", query)
		}
		status, err := readBody(b.r, length)
		switch {
		case err != nil:
			return err
		case kind == 'Z' && status != idleStatus:
			return fmt.Errorf("the session is not idle after %q", query)
		case kind == 'Z':
			return nil
		}
	}
}

// The messages that matter here; the others pass as they are. See the manual's chapter
// "Frontend/Backend Protocol", section "Message Formats".
const (
	idleStatus   = 'I' // ReadyForQuery's, outside a transaction
	headerBytes  = 5   // a type, and a length that counts itself
	maxBodyBytes = 1 << 30
)

// traffic keeps account of a session, to know whether it was left between two statements.
type traffic struct {
	asked    atomic.Int64 // messages that a ReadyForQuery answers
	answered atomic.Int64
	status   atomic.Int32 // of the last ReadyForQuery
	unsynced bool         // the client has begun what only a Sync ends
}

func (t *traffic) clean() bool {
	return t.asked.Load() == t.answered.Load() && t.status.Load() == idleStatus && !t.unsynced
}

var (
	errTerminated = errors.New("the client has said goodbye")
	errHalfAnswer = errors.New("the rest of an answer has not come")
	errFenced     = errors.New("what the client works on is not this worker's any more")
)

// carry passes messages on until one side ends, and says whether the connection may serve another
// client: this one has left it idle, and the server has said nothing since.
func carry(client net.Conn, b *backend, mayWrite func() bool) (clean bool) {
	var seen traffic
	seen.status.Store(idleStatus)
	answers := make(chan error, 1)
	go func() {
		err := passAnswers(client, b, &seen)
		_ = client.SetReadDeadline(time.Now()) // there is nobody to ask any more
		answers <- err
	}()
	err := passRequests(client, b, &seen, mayWrite)
	_ = b.conn.SetReadDeadline(time.Now())
	answerErr := <-answers
	left := errors.Is(err, errTerminated) || errors.Is(err, io.EOF)
	return left && errors.Is(answerErr, os.ErrDeadlineExceeded) &&
		b.r.Buffered() == 0 && b.w.Buffered() == 0 && seen.clean()
}

func passRequests(client net.Conn, b *backend, seen *traffic, mayWrite func() bool) error {
	from := bufio.NewReaderSize(client, bufferBytes)
	for {
		kind, length, err := peekHeader(from)
		if err != nil {
			return err
		}
		switch kind {
		case 'X':
			return errTerminated
		case 'Q', 'F':
			seen.asked.Add(1)
		case 'S':
			seen.asked.Add(1)
			seen.unsynced = false
		default:
			seen.unsynced = true
		}
		if !mayWrite() {
			return errFenced
		}
		if err := pass(b.w, from, length); err != nil {
			return err
		}
	}
}

func passAnswers(client net.Conn, b *backend, seen *traffic) error {
	to := bufio.NewWriterSize(client, bufferBytes)
	for {
		kind, length, err := peekHeader(b.r)
		if err != nil {
			return err
		}
		if kind == 'Z' {
			whole, err := b.r.Peek(headerBytes + 1)
			if err != nil {
				return err
			}
			seen.status.Store(int32(whole[headerBytes]))
			seen.answered.Add(1)
		}
		if err := pass(to, b.r, length); err != nil {
			return fmt.Errorf("%w: %v", errHalfAnswer, err) // not the deadline's own error, which says that all was passed
		}
	}
}

// peekHeader returns the next message's type and the length of its body, and leaves it unread: a
// read that a deadline has ended can then be taken up again.
func peekHeader(from *bufio.Reader) (kind byte, length int64, err error) {
	header, err := from.Peek(headerBytes)
	if err != nil {
		return 0, 0, err
	}
	length = int64(binary.BigEndian.Uint32(header[1:])) - 4
	if length < 0 || length > maxBodyBytes {
		return 0, 0, fmt.Errorf("a message of type %q has %d bytes", header[0], length)
	}
	return header[0], length, nil
}

// pass copies one message, and sends what has gathered when no more has come.
func pass(to *bufio.Writer, from *bufio.Reader, length int64) error {
	if _, err := io.CopyN(to, from, headerBytes+length); err != nil {
		return err
	}
	if from.Buffered() == 0 {
		return to.Flush()
	}
	return nil
}

// readBody reads a message and returns the first byte of its body.
func readBody(from *bufio.Reader, length int64) (first byte, err error) {
	if _, err := from.Discard(headerBytes); err != nil {
		return 0, err
	}
	if length > 0 {
		if first, err = from.ReadByte(); err != nil {
			return 0, err
		}
		_, err = from.Discard(int(length - 1))
	}
	return first, err
}
