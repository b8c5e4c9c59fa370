package devstack

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/stepfleet/stepfleet/internal/supervise"
)

// startWorker starts one worker. Each of its lives is an instance of its own: a death is proof for
// that life only.
func (s *Stack) startWorker(ctx context.Context, i int) error {
	began := time.Now()
	name := fmt.Sprintf("worker-%d", i+1)
	address := loopback(s.ports.workers[i])
	p, err := s.start(supervise.Spec{
		Name:    name,
		Command: s.workerCommand(name, address),
		Ready:   supervise.HTTP("http://" + address + "/readyz"),
		Exited:  s.workerExited,
	})
	if err != nil {
		return err
	}
	s.stopFirst(p)
	return s.awaitUser(ctx, p, name, "http://"+address, began)
}

// workerCommand returns the command of a worker's next life, under a new instance id.
func (s *Stack) workerCommand(name, address string) func(int) supervise.Command {
	return func(int) supervise.Command {
		instance := uuid.NewString()
		s.mu.Lock()
		s.instances[name] = instance
		s.mu.Unlock()
		args := []string{
			s.config.Executable, "worker", "--name", name, "--instance", instance,
			"--listen", address, "--python", s.config.Python,
			"--spool", s.layout.Spool(),
		}
		if s.config.HostMode != "" {
			args = append(args, "--host-mode", s.config.HostMode)
		}
		for _, queue := range s.config.Queues {
			args = append(args, "--queue", queue.String())
		}
		for _, target := range s.targets {
			args = append(args, target.Flag, target.Code, "--location-name", target.Name+"="+target.Code)
		}
		life := instance
		if s.config.LeaveOrphans {
			life = ""
		}
		return supervise.Command{Args: args, Env: s.ofWorker(name), Dir: s.config.Project, Tag: instance, Life: life}
	}
}

// workerExited reports every death of a worker, asked for or not. The process has been reaped, and
// its step processes are gone: a next attempt never runs beside them.
func (s *Stack) workerExited(e supervise.Exit) {
	if prove := s.config.ProofOfDeath; prove != nil && !prove(e.Name) {
		return
	}
	s.deaths.report(e.Tag, fmt.Sprintf("%s, process %d: %s", e.Name, e.PID, e.Reason))
}
