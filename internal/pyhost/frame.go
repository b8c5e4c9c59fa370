package pyhost

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/stepfleet/stepfleet"
)

// frameVersion is the version of the host protocol (docs/protocol.md section 2).
const frameVersion = 2

// speaks says whether a process that speaks this version of the protocol is understood. One of version
// 1 says nothing of its step's end before its result.
func speaks(version int) bool { return version == 1 || version == frameVersion }

// maxFrameBytes bounds a frame: a payload and some room for its JSON escapes.
const maxFrameBytes = 64 << 20

// frame is every frame of the protocol; Op says which fields count.
type frame struct {
	Op string `json:"op"`
	V  int    `json:"v,omitempty"`

	// Of a template: loaded, forked, refused, exited.
	Child     int        `json:"child,omitempty"`
	PID       int        `json:"pid,omitempty"`
	Status    int        `json:"status,omitempty"`
	Reason    string     `json:"reason,omitempty"`
	Seconds   float64    `json:"seconds,omitempty"`
	ForkSafe  bool       `json:"fork_safe,omitempty"`
	Locations []location `json:"locations,omitempty"`

	// Of a child: start, gate, phase, ended, lingers, result.
	Event  string            `json:"event,omitempty"`
	Name   string            `json:"name,omitempty"`
	Result *stepfleet.Result `json:"result,omitempty"`
}

// location says how the preload of one code location went.
type location struct {
	Pointer string  `json:"pointer"`
	OK      bool    `json:"ok"`
	Error   string  `json:"error"`
	Seconds float64 `json:"seconds"`
}

// The frames that the parent sends.
type (
	forkFrame struct {
		Op    string `json:"op"`
		Child int    `json:"child"`
	}
	runFrame struct {
		Op      string            `json:"op"`
		V       int               `json:"v"`
		Task    stepfleet.Task    `json:"task"`
		TaskID  stepfleet.TaskID  `json:"task_id"`
		Fence   stepfleet.Fence   `json:"fence"`
		Payload string            `json:"payload"`
		Env     map[string]string `json:"env"`
	}
	verdictFrame struct {
		Op      string `json:"op"` // granted or refused
		Code    string `json:"code,omitempty"`
		Message string `json:"message,omitempty"`
	}
	stopFrame struct {
		Op string `json:"op"`
	}
	lookFrame struct {
		Op string `json:"op"`
	}
)

func encode(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode frame: %w", err)
	}
	if len(body) > maxFrameBytes {
		return nil, fmt.Errorf("encode frame: %d bytes, allowed are %d", len(body), maxFrameBytes)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...), nil
}

func send(conn *net.UnixConn, v any) error {
	raw, err := encode(v)
	if err != nil {
		return err
	}
	_, err = conn.Write(raw)
	return err
}

// sendWithFile sends a frame and, with its first byte, a file.
func sendWithFile(conn *net.UnixConn, v any, f *os.File) error {
	raw, err := encode(v)
	if err != nil {
		return err
	}
	n, _, err := conn.WriteMsgUnix(raw, syscall.UnixRights(int(f.Fd())), nil)
	if err == nil && n < len(raw) {
		_, err = conn.Write(raw[n:])
	}
	return err
}

func receive(conn *net.UnixConn) (frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return frame{}, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxFrameBytes {
		return frame{}, fmt.Errorf("frame of %d bytes, allowed are %d", size, maxFrameBytes)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(conn, body); err != nil {
		return frame{}, err
	}
	var f frame
	if err := json.Unmarshal(body, &f); err != nil {
		return frame{}, fmt.Errorf("decode frame: %w", err)
	}
	return f, nil
}

// socketpair returns the parent's connection and the file that a process will inherit.
func socketpair() (*net.UnixConn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "process")
	conn, err := net.FileConn(ours)
	err = errors.Join(err, ours.Close())
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return conn.(*net.UnixConn), theirs, nil
}
