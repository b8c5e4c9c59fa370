package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/stepfleet/stepfleet/internal/metrics"
	"github.com/stepfleet/stepfleet/localaws"
	"github.com/stepfleet/stepfleet/localaws/arn"
	"github.com/stepfleet/stepfleet/localaws/journal"
	"github.com/stepfleet/stepfleet/localaws/sqs"
)

type awsCmd struct {
	Listen   string `help:"Address to answer on; loopback only." default:"127.0.0.1:9324" env:"STEPFLEET_AWS_LISTEN"`
	Region   string `help:"Region of a call that names none." default:"us-east-1" env:"STEPFLEET_AWS_REGION"`
	Account  string `help:"Account, of twelve digits, of a call whose access key is no account number." default:"000000000000" env:"STEPFLEET_AWS_ACCOUNT"`
	Mode     string `help:"faithful, or adversarial: duplicates, disorder, short answers and late counters, as AWS permits itself." enum:"faithful,adversarial" default:"faithful" env:"STEPFLEET_AWS_MODE"`
	QueueURL string `help:"How queue URLs are made: path, domain (sqs.REGION.HOST), or a template that ends in /{account}/{name}." default:"path" env:"STEPFLEET_AWS_QUEUE_URL"`
	Dir      string `help:"Directory to keep queues and messages in; without it they end with the process." type:"path" env:"STEPFLEET_AWS_DIR"`
	Fsync    string `help:"When what is kept in --dir is forced to the disk: always, interval (a second) or never. A killed process loses nothing with any." enum:"always,interval,never" default:"interval" env:"STEPFLEET_AWS_FSYNC"`
	Clock    bool   `name:"movable-clock" help:"Let clients move the time forward, below /_localaws/clock." env:"STEPFLEET_AWS_MOVABLE_CLOCK"`
	Seed     uint64 `help:"Seed of identifiers and of the adversarial mode; 0 picks one." default:"0" env:"STEPFLEET_AWS_SEED"`

	Credentials map[string]string `help:"Verify signatures against these access keys: KEY=SECRET;KEY=SECRET. Without any, every signature is taken." placeholder:"KEY=SECRET" env:"STEPFLEET_AWS_CREDENTIALS"`
}

// Validate refuses an account that no client would take for one: it is part of queue URLs and ARNs.
func (c *awsCmd) Validate() error {
	if !arn.IsAccount(c.Account) {
		return fmt.Errorf("--account is %q: give twelve digits, such as 123456789012", c.Account)
	}
	return nil
}

// awsGCPercent is how much garbage may be beside what queues hold before it is collected, in percent,
// unless GOGC says otherwise. From Go's own 100 to 300 a batch send went from 10.7 to 8.0 us of CPU a
// message, and the memory of a message from 470 to between 640 and 790 bytes.
const awsGCPercent = 300

// Run serves the local AWS until it is told to stop.
func (c *awsCmd) Run(g *globals) error {
	urls, err := sqs.ParseURLTemplate(c.QueueURL)
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(awsGCPercent)
	}
	counted := metrics.New(version)
	return localaws.Run(g.ctx, localaws.Config{Addr: c.Listen, MovableClock: c.Clock, Options: localaws.Options{
		Logger: g.log, Region: c.Region, Account: c.Account, Seed: c.Seed, Mode: sqs.Mode(c.Mode), QueueURL: urls,
		OnCall: counted.AWS(), Scrape: counted.Handler(),
		Metrics: true, Credentials: c.Credentials, Dir: c.Dir, Journal: journal.Options{Sync: journal.Sync(c.Fsync)},
	}})
}
