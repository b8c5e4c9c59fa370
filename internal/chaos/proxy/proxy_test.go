package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for, silence is how long nothing must come.
const (
	patience = 5 * time.Second
	silence  = 100 * time.Millisecond
)

// echo is a server that answers every line with its name and the line.
func echo(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					fmt.Fprintf(c, "%s says %s\n", name, lines.Text())
				}
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

type client struct {
	t *testing.T
	*net.TCPConn
	in *bufio.Reader
}

func dial(t *testing.T, address string) *client {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{t, c.(*net.TCPConn), bufio.NewReader(c)}
}

// ask sends a line and returns the answer, or why there is none.
func (c *client) ask(line string, wait time.Duration) (string, error) {
	c.t.Helper()
	if _, err := c.Write([]byte(line + "\n")); err != nil {
		return "", err
	}
	return c.hear(wait)
}

func (c *client) hear(wait time.Duration) (string, error) {
	_ = c.SetReadDeadline(time.Now().Add(wait))
	answer, err := c.in.ReadString('\n')
	return strings.TrimSpace(answer), err
}

func (c *client) mustAsk(line, want string) {
	c.t.Helper()
	if answer, err := c.ask(line, patience); err != nil || answer != want {
		c.t.Fatalf("asked %q: %q, %v; want %q", line, answer, err, want)
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func edgeTo(t *testing.T, name string, targets ...string) (*Edge, string) {
	t.Helper()
	e := NewEdge(name, func() []string { return targets })
	l, err := Listen(e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return e, l.Addr()
}

func inject(t *testing.T, e *Edge, f Fault) *Injection {
	t.Helper()
	i, err := e.Inject(f)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestConnectionsTakeTargetsInTurnAndPassThoseThatRefuse(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	_, address := edgeTo(t, "e", echo(t, "a"), gone.Addr().String(), echo(t, "b"))
	seen := map[string]int{}
	for range 6 {
		answer, err := dial(t, address).ask("hi", patience)
		if err != nil {
			t.Fatal(err)
		}
		seen[answer]++
	}
	if seen["a says hi"] < 2 || seen["b says hi"] < 2 {
		t.Errorf("%v, want both", seen)
	}
}

func TestTheFirstBytesChooseTheEdge(t *testing.T) {
	a, b := NewEdge("a", func() []string { return []string{echo(t, "a")} }), NewEdge("b", func() []string { return []string{echo(t, "b")} })
	l, err := ListenMany(func(first []byte) *Edge {
		if strings.HasPrefix(string(first), "to b") {
			return b
		}
		return a
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial(t, l.Addr()).mustAsk("to a", "a says to a")
	dial(t, l.Addr()).mustAsk("to b", "b says to b")
}

func TestAnOrderlyEndPassesWithAllItsBytes(t *testing.T) {
	const size = 1 << 20
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, c) // until the client has said all
		_, _ = c.Write(make([]byte, size))
		c.Close()
	}()
	_, address := edgeTo(t, "e", l.Addr().String())
	c := dial(t, address)
	_, _ = c.Write([]byte("question"))
	_ = c.CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if n, err := io.Copy(io.Discard, c); n != size || err != nil {
		t.Errorf("%d bytes, %v; want %d", n, err, size)
	}
}

func TestCutResetsOpenAndNewConnections(t *testing.T) {
	e, address := edgeTo(t, "e", echo(t, "a"))
	c := dial(t, address)
	c.mustAsk("1", "a says 1")
	fault := inject(t, e, Fault{Mode: Cut})
	if _, err := c.hear(patience); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
	if _, err := dial(t, address).hear(patience); err == nil || isTimeout(err) {
		t.Errorf("%v, want a new connection to be reset", err)
	}
	if fault.Hits() != 2 {
		t.Errorf("%d hits, want 2", fault.Hits())
	}
	fault.Heal()
	dial(t, address).mustAsk("2", "a says 2")
}

func TestStallHoldsBytesAndConnectionsUntilHealed(t *testing.T) {
	e, address := edgeTo(t, "e", echo(t, "a"))
	c := dial(t, address)
	c.mustAsk("1", "a says 1")
	fault := inject(t, e, Fault{Mode: Stall})
	late := dial(t, address)
	for _, c := range []*client{c, late} {
		if answer, err := c.ask("2", silence); !isTimeout(err) {
			t.Errorf("%q, %v; want silence", answer, err)
		}
	}
	if fault.Hits() != 2 {
		t.Errorf("%d hits, want 2", fault.Hits())
	}
	fault.Heal()
	for _, c := range []*client{c, late} {
		if answer, err := c.hear(patience); answer != "a says 2" || err != nil {
			t.Errorf("%q, %v after the stall", answer, err)
		}
	}
}

func TestHalfOpenSwallowsRepliesAndResetsWhatLostSome(t *testing.T) {
	asked := make(chan string, 2)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for lines := bufio.NewScanner(c); lines.Scan(); {
			asked <- lines.Text()
			fmt.Fprintf(c, "%s\n", lines.Text())
		}
	}()
	e, address := edgeTo(t, "e", l.Addr().String())
	c := dial(t, address)
	c.mustAsk("1", "1")
	fault := inject(t, e, Fault{Mode: HalfOpen})
	if answer, err := c.ask("2", silence); !isTimeout(err) {
		t.Errorf("%q, %v; want silence", answer, err)
	}
	if got := []string{<-asked, <-asked}; got[1] != "2" || fault.Hits() != 1 {
		t.Errorf("the far side heard %q, %d hits; want it to hear the request", got, fault.Hits())
	}
	fault.Heal()
	if _, err := c.hear(patience); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset: the stream has a hole", err)
	}
}

func TestResetCutsAReplyAtItsByte(t *testing.T) {
	for _, k := range []int{0, 1, 6, 7} {
		e, address := edgeTo(t, "e", echo(t, "a"))
		c := dial(t, address)
		c.mustAsk("1", "a says 1")
		fault := inject(t, e, Fault{Mode: Reset, Byte: k, Times: 1})
		answer, err := c.ask("2", patience)
		if answer != strings.TrimSpace("a says 2"[:k]) || err == nil || isTimeout(err) {
			t.Errorf("byte %d: %q, %v", k, answer, err)
		}
		if fault.Hits() != 1 {
			t.Errorf("byte %d: %d hits", k, fault.Hits())
		}
		dial(t, address).mustAsk("3", "a says 3") // spent
		fault.Heal()
	}
}

func TestAResetBeyondTheReplyHitsNothing(t *testing.T) {
	e, address := edgeTo(t, "e", echo(t, "a"))
	fault := inject(t, e, Fault{Mode: Reset, Byte: 100, Times: 1})
	c := dial(t, address)
	for range 30 { // more than 100 bytes, but no reply is that long
		c.mustAsk("1", "a says 1")
	}
	if fault.Hits() != 0 {
		t.Errorf("%d hits", fault.Hits())
	}
}

func TestDelayHoldsEachPiece(t *testing.T) {
	e, address := edgeTo(t, "e", echo(t, "a"))
	c := dial(t, address)
	fault := inject(t, e, Fault{Mode: Delay, Delay: 60 * time.Millisecond})
	began := time.Now()
	c.mustAsk("1", "a says 1")
	if took := time.Since(began); took < 120*time.Millisecond {
		t.Errorf("%s, want the delay each way", took)
	}
	fault.Heal()
	if fault.Hits() != 1 {
		t.Errorf("%d hits", fault.Hits())
	}
}

func TestAnEdgeHasOneFaultAtATime(t *testing.T) {
	e, _ := edgeTo(t, "e", echo(t, "a"))
	fault := inject(t, e, Fault{Mode: Stall})
	if _, err := e.Inject(Fault{Mode: Cut}); !errors.Is(err, ErrBusy) {
		t.Errorf("%v, want ErrBusy", err)
	}
	fault.Heal()
	fault.Heal()
	inject(t, e, Fault{Mode: Cut}).Heal()
	if _, err := e.Inject(Fault{Mode: Reset}); err == nil {
		t.Error("a reset of no reply is no fault")
	}
}

func TestCloseEndsStalledConnections(t *testing.T) {
	e := NewEdge("e", func() []string { return nil })
	l, err := Listen(e)
	if err != nil {
		t.Fatal(err)
	}
	fault := inject(t, e, Fault{Mode: Stall})
	c := dial(t, l.Addr())
	for deadline := time.Now().Add(patience); fault.Hits() == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // the listener's own goroutine accepts
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.hear(patience); err == nil || isTimeout(err) {
		t.Errorf("%v, want the end", err)
	}
}
