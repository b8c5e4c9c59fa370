package localaws

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// serving serves on a free port until the test ends, and returns how to connect.
func serving(t *testing.T, a *AWS) (dial func() net.Conn) {
	t.Helper()
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func() net.Conn {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
}

// head is the head of a call whose body has that many bytes.
func head(target string, size int, more ...string) string {
	return fmt.Sprintf("POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Amz-Target: %s\r\nContent-Length: %d\r\n%s\r\n", target, size, strings.Join(more, ""))
}

// answerOf reads an answer from the connection.
func answerOf(t *testing.T, c net.Conn) (status int, body string) {
	t.Helper()
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	return answer.StatusCode, string(b)
}

func TestABodyThatStopsIsGivenUp(t *testing.T) {
	a := New(Options{})
	a.readTimeout = 50 * time.Millisecond
	c := serving(t, a)()
	_, _ = io.WriteString(c, head("AmazonSQS.ListQueues", 10)+"{")
	if status, body := answerOf(t, c); status != http.StatusRequestTimeout {
		t.Errorf("%d %s", status, body)
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection stays open: %d %v", n, err)
	}
}

// What bounds the body must not bound the call: net/http lifts the bound when the body has come.
func TestALongPollOutlastsTheTimeForItsBody(t *testing.T) {
	a := New(Options{})
	a.readTimeout = 50 * time.Millisecond
	dial := serving(t, a)
	for _, call := range [][2]string{
		{"AmazonSQS.CreateQueue", `{"QueueName":"q"}`}, {"AmazonSQS.ReceiveMessage", `{"QueueUrl":"q","WaitTimeSeconds":1}`},
	} {
		c := dial()
		_, _ = io.WriteString(c, head(call[0], len(call[1]))+call[1])
		if status, body := answerOf(t, c); status != http.StatusOK {
			t.Errorf("%s: %d %s", call[0], status, body)
		}
	}
}

// Many clients send all of a body before they look for an answer.
func TestTheSenderOfTooLargeABodySeesTheAnswer(t *testing.T) {
	dial := serving(t, New(Options{}))
	for name, send := range map[string]func(c net.Conn) error{
		"with its length": func(c net.Conn) error {
			_, err := c.Write(append([]byte(head("AmazonSQS.SendMessage", 3*MaxBodyBytes)), make([]byte, 3*MaxBodyBytes)...))
			return err
		},
		"in chunks": func(c net.Conn) error {
			start := strings.Replace(head("AmazonSQS.SendMessage", 0), "Content-Length: 0", "Transfer-Encoding: chunked", 1)
			chunk := append(bytes.Repeat([]byte{'x'}, 1<<20), "\r\n"...)
			_, err := io.WriteString(c, start)
			for range 20 {
				if err == nil {
					_, err = c.Write(append([]byte("100000\r\n"), chunk...))
				}
			}
			if err == nil {
				_, err = io.WriteString(c, "0\r\n\r\n")
			}
			return err
		},
		"when told to": func(c net.Conn) error {
			_, err := io.WriteString(c, head("AmazonSQS.SendMessage", MaxBodyBytes+1, "Expect: 100-continue\r\n"))
			return err
		},
	} {
		c := dial()
		if err := send(c); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if status, body := answerOf(t, c); status != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
}
