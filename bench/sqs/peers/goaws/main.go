// Command goaws serves goaws's queues as its own command does, on one loopback address: that one
// listens on every interface.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/Admiral-Piett/goaws/app/conf"
	"github.com/Admiral-Piett/goaws/app/gosqs"
	"github.com/Admiral-Piett/goaws/app/router"
	log "github.com/sirupsen/logrus"
)

// lookForDue is how often goaws looks for what became visible or is over, as in its own command.
const lookForDue = time.Second

func main() {
	config := flag.String("config", "", "goaws's configuration; its environment is Local")
	listen := flag.String("listen", "127.0.0.1:4100", "HOST:PORT")
	flag.Parse()
	log.SetLevel(log.ErrorLevel)
	conf.LoadYamlConfig(*config, "Local")
	go gosqs.PeriodicTasks(lookForDue, make(chan bool))
	fmt.Fprintln(os.Stderr, "goaws:", http.ListenAndServe(*listen, router.New()))
	os.Exit(1)
}
