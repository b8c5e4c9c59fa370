package devstack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports are the ports a user may choose; 0 means any free one.
type Ports struct {
	Dagster, Server, AWS, Postgres int
}

// assigned are the ports of every process. Postgres may stay 0: it chooses its own.
type assigned struct {
	dagster, aws, postgres int
	servers                []int
	workers                []int
	code                   []int
}

// Free ports are taken from below the range that outgoing connections use, or a connection of
// somebody else could take one between the choice and its use.
const (
	firstFreePort = 20000
	lastFreePort  = 32000
	portTries     = 1000
)

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// assign checks the chosen ports and finds free ones for the rest, all different.
func assign(c Config, code int) (assigned, error) {
	wanted, localAWS := c.Ports, c.AWSEndpoint == ""
	a := assigned{dagster: wanted.Dagster, aws: wanted.AWS, postgres: wanted.Postgres, servers: make([]int, c.Servers)}
	a.servers[0] = wanted.Server
	chosen := []struct {
		port *int
		flag string
	}{{&a.dagster, "--port-dagster"}, {&a.servers[0], "--port-server"}, {&a.aws, "--port-sqs"}, {&a.postgres, "--port-postgres"}}
	seen := map[int]string{}
	var errs []error
	for _, c := range chosen {
		if *c.port == 0 || c.port == &a.aws && !localAWS {
			continue
		}
		if other, twice := seen[*c.port]; twice {
			errs = append(errs, fmt.Errorf("port %d is given to both %s and %s", *c.port, other, c.flag))
		} else if !free(*c.port) {
			errs = append(errs, fmt.Errorf("port %d is taken: choose another with %s PORT (0 takes any free one)", *c.port, c.flag))
		}
		seen[*c.port] = c.flag
	}
	if err := errors.Join(errs...); err != nil {
		return a, err
	}
	a.workers, a.code = make([]int, c.Workers), make([]int, code)
	var empty []*int
	for _, c := range chosen {
		if *c.port == 0 {
			empty = append(empty, c.port)
		}
	}
	for i := range a.servers[1:] {
		empty = append(empty, &a.servers[1+i])
	}
	for i := range a.workers {
		empty = append(empty, &a.workers[i])
	}
	for i := range a.code {
		empty = append(empty, &a.code[i])
	}
	return a, fill(empty, seen)
}

// fill gives each port a free number that is not in use.
func fill(ports []*int, used map[int]string) error {
	for _, port := range ports {
		for try := 0; *port == 0; try++ {
			if try == portTries {
				return fmt.Errorf("no free port found between %d and %d", firstFreePort, lastFreePort)
			}
			n := firstFreePort + rand.N(lastFreePort-firstFreePort)
			if _, twice := used[n]; !twice && free(n) {
				*port, used[n] = n, "another process"
			}
		}
	}
	return nil
}

// free reports whether nothing listens on the port at the moment.
func free(port int) bool {
	listener, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return false
	}
	return listener.Close() == nil
}
