package stepfleet

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
)

// ConnectionName is what the processes of a worker call their connections to Dagster's database, so that
// whoever decides how an attempt ended can tell whether its process may still have something under way
// there. What follows it is the number of the process (ConnectionNameOf).
func ConnectionName(instance string) string {
	digest := sha256.Sum256([]byte(instance)) // an instance may have any length and characters
	return "stepfleet/" + hex.EncodeToString(digest[:8])
}

// ConnectionNameOf is what one process calls its connections: the name of its worker's, and the number of
// the process group that it leads. With 0 it is what all of the worker's begin with.
func ConnectionNameOf(instance string, process int) string {
	name := ConnectionName(instance) + "/"
	if process == 0 {
		return name
	}
	return name + strconv.Itoa(process)
}
