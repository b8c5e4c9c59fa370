package demo

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// sessionOver is a worker's line on a session that it ended itself.
var sessionOver = regexp.MustCompile(`msg="session over".* claims_by_bell=(\d+)`)

// claimsByBell returns how many claims bells led to, by the logs of the workers. Workers find tasks
// without bells too, a little later, so that a queue that takes every message and delivers none shows
// nowhere else. What a worker that was killed had claimed is not counted.
func claimsByBell(logs string) (int, error) {
	files, err := filepath.Glob(filepath.Join(logs, "worker-*.log"))
	if err != nil {
		return 0, err
	}
	sum, sessions := 0, 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, fmt.Errorf("count the bells: %w", err)
		}
		for line := range bytes.Lines(text) {
			if found := sessionOver.FindSubmatch(line); found != nil {
				n, _ := strconv.Atoi(string(found[1]))
				sum, sessions = sum+n, sessions+1
			}
		}
	}
	if sessions == 0 {
		return 0, fmt.Errorf("count the bells: no worker in %s says how its session ended", logs)
	}
	return sum, nil
}
