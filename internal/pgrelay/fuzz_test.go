package pgrelay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// hello is a client's first message and the connection string that it gives as its password.
func hello(dsn string, params map[string]string) []byte {
	first, err := (&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersionNumber, Parameters: params}).Encode(nil)
	if err != nil {
		panic(err)
	}
	all, err := (&pgproto3.PasswordMessage{Password: dsn}).Encode(first)
	if err != nil {
		panic(err)
	}
	return all
}

// FuzzGreet reads what a client says first. Who is let in has said a connection string, and never is
// its password in what goes to the log.
func FuzzGreet(f *testing.F) {
	f.Add(hello("postgres://u:PASSWORD@127.0.0.1:1/d", map[string]string{"user": "u", "database": "d"}))
	f.Add(hello("host=127.0.0.1 password=PASSWORD port=x", map[string]string{"user": "u", "options": "-csearch_path=x"}))
	f.Add(hello("x", map[string]string{"user": "u", "replication": "1"}))
	f.Add([]byte("\x00\x00\x00\x08\x04\xd2\x16\x2f" + "\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x00\x01\x00\x00\x00\x02"))
	f.Add([]byte("\x00\x00\x00\x08\x04\xd2\x16\x30"))
	f.Add([]byte("\xff\xff\xff\xff\x00\x03\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x04"))
	relay := &Relay{used: map[*backend]struct{}{}, log: slog.New(slog.DiscardHandler)}
	f.Fuzz(func(t *testing.T, raw []byte) {
		client := &conversation{said: bytes.NewReader(raw)}
		who, err := relay.greet(client)
		if err != nil {
			return
		}
		if who == nil {
			return // it wanted a statement cancelled
		}
		if !bytes.Contains(raw, []byte(who.dsn)) || who.params["replication"] != "" {
			t.Errorf("%q lets in %q with %v", raw, who.dsn, who.params)
		}
		if secret := passwordIn(who.dsn); len(secret) > 5 && !strings.Contains(strings.Replace(who.dsn, secret, "", 1), secret) {
			over, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := connect(over, who); err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the password of %q is in %v", who.dsn, err)
			}
		}
	})
}

// A client that promises a connection string of a gigabyte must not be given the room for it.
func TestNoRoomIsMadeForAPromise(t *testing.T) {
	raw := hello("x", map[string]string{"user": "u"})
	at := bytes.LastIndexByte(raw, 'p')
	copy(raw[at+1:], []byte{0x3f, 0xff, 0xff, 0xff})
	relay := &Relay{used: map[*backend]struct{}{}, log: slog.New(slog.DiscardHandler)}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if who, err := relay.greet(&conversation{said: bytes.NewReader(raw)}); err == nil {
		t.Errorf("lets in %+v", who)
	}
	runtime.ReadMemStats(&after)
	if room := after.TotalAlloc - before.TotalAlloc; room > 16<<20 {
		t.Errorf("%d bytes were made room for", room)
	}
}

// passwordIn is the password of a connection string that can be read, "" where none can be.
func passwordIn(dsn string) string {
	if strings.Contains(dsn, "ssl") || strings.Contains(dsn, "passfile") || strings.Contains(dsn, "service") {
		return "" // it would read files
	}
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil || strings.Contains(dsn, "/"+cfg.Password) {
		return ""
	}
	return cfg.Password
}

// FuzzCarry passes on what both sides say until one ends: bytes that arrive are those that were sent,
// in whole messages, and a connection that is not idle is never given to the next client.
func FuzzCarry(f *testing.F) {
	query, _ := (&pgproto3.Query{String: "SELECT 1"}).Encode(nil)
	goodbye, _ := (&pgproto3.Terminate{}).Encode(nil)
	idle, _ := (&pgproto3.ReadyForQuery{TxStatus: 'I'}).Encode(nil)
	inside, _ := (&pgproto3.ReadyForQuery{TxStatus: 'T'}).Encode(nil)
	sync, _ := (&pgproto3.Sync{}).Encode(nil)
	parse, _ := (&pgproto3.Parse{Query: "SELECT 1"}).Encode(nil)
	f.Add(append(bytes.Clone(query), goodbye...), idle)
	f.Add(append(bytes.Clone(query), goodbye...), inside)
	f.Add(append(append(bytes.Clone(parse), sync...), goodbye...), idle)
	f.Add(parse, []byte{})
	f.Add([]byte("Q\x00\x00\x00\x03"), []byte("Z\x00\x00\x00\x04"))
	f.Add([]byte("Q\xff\xff\xff\xff"), []byte("Z\x00\x00\x00\x06II"))
	f.Fuzz(func(t *testing.T, asked, answered []byte) {
		if len(asked)+len(answered) > 32<<10 {
			t.Skip("more than fits the pipes")
		}
		client := &conversation{said: bytes.NewReader(asked)}
		server := &conversation{said: bytes.NewReader(answered), stays: true}
		clean := carry(client, newBackend(&pgconn.HijackedConn{Conn: server}), func() bool { return true })
		if !bytes.HasPrefix(asked, server.heard.Bytes()) {
			t.Errorf("the client said %q, the server heard %q", asked, server.heard.Bytes())
		}
		if !bytes.HasPrefix(answered, client.heard.Bytes()) {
			t.Errorf("the server said %q, the client heard %q", answered, client.heard.Bytes())
		}
		if last := lastReady(answered); clean && last != 0 && last != 'I' {
			t.Errorf("%q and %q leave status %q, and yet are clean", asked, answered, last)
		}
	})
}

// lastReady is the status of the last ReadyForQuery among whole messages, 0 where there is none.
func lastReady(messages []byte) (status byte) {
	for len(messages) >= 5 {
		whole := 1 + uint64(binary.BigEndian.Uint32(messages[1:]))
		if whole < 5 || whole > uint64(len(messages)) {
			break
		}
		if messages[0] == 'Z' && whole > 5 {
			status = messages[5]
		}
		messages = messages[whole:]
	}
	return status
}

// conversation is a connection whose peer has said everything already. Then it goes, or it stays and
// says no more.
type conversation struct {
	said  *bytes.Reader
	stays bool
	heard bytes.Buffer
}

func (c *conversation) Read(p []byte) (int, error) {
	n, err := c.said.Read(p)
	if errors.Is(err, io.EOF) && c.stays {
		return 0, os.ErrDeadlineExceeded // which the relay sets when the other side has gone
	}
	return n, err
}

func (c *conversation) Write(p []byte) (int, error)      { return c.heard.Write(p) }
func (c *conversation) Close() error                     { return nil }
func (c *conversation) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (c *conversation) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (c *conversation) SetDeadline(time.Time) error      { return nil }
func (c *conversation) SetReadDeadline(time.Time) error  { return nil }
func (c *conversation) SetWriteDeadline(time.Time) error { return nil }
