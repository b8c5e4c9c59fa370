package dagsterapi

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Repository is the name of the repository that a Definitions object makes.
const Repository = "__repository__"

// Location is one code location as Dagster sees it.
type Location struct {
	Name string
	Jobs []string
	// Error says why it did not load; empty when it did.
	Error string
}

const locationsQuery = `{ workspaceOrError { __typename
  ... on PythonError { message }
  ... on Workspace { locationEntries { name locationOrLoadError { __typename
    ... on PythonError { message }
    ... on RepositoryLocation { repositories { name pipelines { name } } } } } } } }`

// Locations returns the code locations, loaded or not.
func (c *Client) Locations(ctx context.Context) ([]Location, error) {
	var data struct {
		Workspace struct {
			typed
			Entries []struct {
				Name     string `json:"name"`
				Location *struct {
					typed
					Repositories []struct {
						Jobs []struct {
							Name string `json:"name"`
						} `json:"pipelines"`
					} `json:"repositories"`
				} `json:"locationOrLoadError"`
			} `json:"locationEntries"`
		} `json:"workspaceOrError"`
	}
	if err := c.call(ctx, locationsQuery, nil, &data); err != nil {
		return nil, err
	}
	if err := data.Workspace.want("Workspace"); err != nil {
		return nil, err
	}
	var locations []Location
	for _, entry := range data.Workspace.Entries {
		location := Location{Name: entry.Name}
		if entry.Location == nil {
			location.Error = "it is still loading"
		} else if err := entry.Location.want("RepositoryLocation"); err != nil {
			location.Error = entry.Location.Message
		} else {
			for _, repository := range entry.Location.Repositories {
				for _, job := range repository.Jobs {
					if !strings.HasPrefix(job.Name, "__") { // Dagster's implicit asset job
						location.Jobs = append(location.Jobs, job.Name)
					}
				}
			}
		}
		locations = append(locations, location)
	}
	return locations, nil
}

const daemonQuery = `{ instance { daemonHealth { allDaemonStatuses { daemonType required lastHeartbeatTime } } } }`

// DaemonBeats returns nil when every daemon that Dagster requires has sent a heartbeat since then.
func (c *Client) DaemonBeats(ctx context.Context, since time.Time) error {
	var data struct {
		Instance struct {
			Health struct {
				All []struct {
					Type     string   `json:"daemonType"`
					Required bool     `json:"required"`
					Last     *float64 `json:"lastHeartbeatTime"`
				} `json:"allDaemonStatuses"`
			} `json:"daemonHealth"`
		} `json:"instance"`
	}
	if err := c.call(ctx, daemonQuery, nil, &data); err != nil {
		return err
	}
	if len(data.Instance.Health.All) == 0 {
		return fmt.Errorf("dagster names no daemon")
	}
	var silent []string
	for _, daemon := range data.Instance.Health.All {
		if daemon.Required && (daemon.Last == nil || *daemon.Last < float64(since.Unix())) {
			silent = append(silent, strconv.Quote(daemon.Type))
		}
	}
	if len(silent) > 0 {
		return fmt.Errorf("no heartbeat yet of %s", strings.Join(silent, ", "))
	}
	return nil
}
