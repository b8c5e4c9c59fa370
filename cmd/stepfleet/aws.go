package main

import "github.com/stepfleet/stepfleet/localaws"

type awsCmd struct {
	Listen string `help:"Address to answer on; loopback only." default:"127.0.0.1:9324" env:"STEPFLEET_AWS_LISTEN"`
}

// Run serves the local AWS until it is told to stop.
func (c *awsCmd) Run(g *globals) error {
	return localaws.Run(g.ctx, localaws.Config{Addr: c.Listen, Logger: g.log})
}
