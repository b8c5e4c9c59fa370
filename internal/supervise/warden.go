package supervise

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// wardenVariable carries the mark that the warden watches over. It is not the mark itself, or the
// warden would be its own victim.
const wardenVariable = "STEPFLEET_WARDEN_FOR"

// wardenBye is the word that ends a warden peacefully. End of file without it means that the
// supervisor died.
const wardenBye = "bye"

// Warden is a running warden as its supervisor holds it: the write end of a pipe that the kernel
// closes when the supervisor dies, however it dies.
type Warden struct {
	pipe *os.File
	cmd  *exec.Cmd
}

// StartWarden starts args (which must end up in RunWarden) as the warden of everything marked with
// id. It runs in a session of its own, so no signal for the supervisor's terminal or group reaches it.
func StartWarden(args []string, id, logPath string) (*Warden, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start warden: %w", err)
	}
	defer read.Close()
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		write.Close()
		return nil, fmt.Errorf("start warden: open log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = read, log, log
	cmd.Env = append(Unmarked(os.Environ()), wardenVariable+"="+id)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		write.Close()
		return nil, fmt.Errorf("start warden: %w", err)
	}
	return &Warden{pipe: write, cmd: cmd}, nil
}

// PID returns the warden's process id.
func (w *Warden) PID() int { return w.cmd.Process.Pid }

// Dismiss ends the warden peacefully, when nothing is left to watch over.
func (w *Warden) Dismiss() error {
	_, errWrite := fmt.Fprintln(w.pipe, wardenBye)
	errClose := w.pipe.Close()
	if err := w.cmd.Wait(); err != nil {
		return fmt.Errorf("dismiss warden: %w", err)
	}
	if errWrite != nil {
		return fmt.Errorf("dismiss warden: %w", errWrite)
	}
	return errClose
}

// RunWarden is the warden's whole life: it reads from in until the supervisor says good-bye or is
// gone; in the second case it kills everything that carries the mark.
func RunWarden(in io.Reader, log *slog.Logger) error {
	id := os.Getenv(wardenVariable)
	if id == "" {
		return fmt.Errorf("warden: %s is not set; this command is started by `stepfleet dev`", wardenVariable)
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if lines.Text() == wardenBye {
			return nil
		}
	}
	log.Warn("the supervisor is gone, killing what it left", "dev_id", id)
	log.Warn("done", "dev_id", id, "killed", Sweep(id))
	return nil
}

// Unmarked returns the environment without a mark and a warden's variable.
func Unmarked(environ []string) []string {
	var clean []string
	for _, variable := range environ {
		if !strings.HasPrefix(variable, MarkVariable+"=") && !strings.HasPrefix(variable, wardenVariable+"=") {
			clean = append(clean, variable)
		}
	}
	return clean
}
