package main

import (
	"context"
	"os"

	"github.com/stepfleet/stepfleet/internal/devstack"
	"github.com/stepfleet/stepfleet/internal/postgres"
	"github.com/stepfleet/stepfleet/internal/stackdb"
	"github.com/stepfleet/stepfleet/internal/supervise"
)

type devCmd struct {
	Module []string `short:"m" help:"Module of your definitions; repeat for more. Default: pyproject.toml's [tool.dagster]."`
	File   []string `short:"f" help:"Python file of your definitions; repeat for more."`
	Python string   `help:"Python of your project. Default: the active virtual environment's, else python3." env:"STEPFLEET_PYTHON"`

	Dir   string `help:"Directory for everything it keeps." default:".stepfleet"`
	Fresh bool   `help:"Forget what the directory holds and start empty."`

	Workers     int      `help:"Number of workers." default:"2"`
	Queue       []string `help:"Queue that each worker serves and its slots; repeat for more." default:"default:4"`
	MaxRuns     int      `help:"Runs that Dagster lets run at once." default:"10"`
	RunLauncher string   `help:"Who starts run workers: stepfleet (as tasks of the workers) or default (Dagster's own launcher)." enum:"stepfleet,default" default:"stepfleet"`
	DagsterYAML string   `name:"dagster-yaml" help:"File with settings of Dagster's instance, such as compute_logs: each of its keys replaces the stack's. Storage is the stack's own." placeholder:"FILE"`
	HostMode    string   `help:"Where step processes come from: fork, cold, or auto (fork when safe)." enum:"auto,fork,cold" default:"auto" env:"STEPFLEET_HOST_MODE"`
	AWSEndpoint string   `name:"aws-endpoint" help:"SQS to use instead of the local one, with the credentials of your environment." env:"STEPFLEET_AWS_ENDPOINT"`

	PortDagster  int `help:"Port of Dagster's UI; 0 takes any free one, here and below." default:"3000"`
	PortServer   int `help:"Port of the stepfleet server." default:"8630"`
	PortSQS      int `name:"port-sqs" help:"Port of the local SQS." default:"9324"`
	PortPostgres int `help:"Port of PostgreSQL." default:"0"`
}

// Run starts the whole stack and stays up until it is told to stop.
func (c *devCmd) Run(g *globals) error {
	queues, err := devstack.ParseQueues(c.Queue)
	if err != nil {
		return err
	}
	python := c.Python
	if python == "" {
		python = devstack.DefaultPython()
	}
	return devstack.Run(g.ctx, devstack.Config{
		Modules: c.Module, Files: c.File, Dir: c.Dir, Fresh: c.Fresh, Python: python,
		Workers: c.Workers, Queues: queues, MaxRuns: c.MaxRuns, RunLauncher: c.RunLauncher, DagsterYAML: c.DagsterYAML, HostMode: c.HostMode, AWSEndpoint: c.AWSEndpoint,
		Ports: devstack.Ports{
			Dagster: c.PortDagster, Server: c.PortServer, AWS: c.PortSQS, Postgres: c.PortPostgres,
		},
		StartPostgres: stackdb.Starter(g.log),
		Migrate: func(ctx context.Context, ownerURL string) error {
			_, err := postgres.Migrate(ctx, ownerURL, postgres.Options{Logger: g.log, AppName: "stepfleet dev"})
			return err
		},
		Out: g.stdout, Log: g.log,
	})
}

type wardenCmd struct{}

// Run outlives the stack that started it, if that is killed, and ends what it left behind.
func (c *wardenCmd) Run(g *globals) error {
	return supervise.RunWarden(os.Stdin, g.log)
}
