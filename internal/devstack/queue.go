package devstack

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/stepfleet/stepfleet"
)

// Queue is a queue that every worker serves, with this many slots in each.
type Queue struct {
	Name  string
	Slots int
}

// maxSlots bounds a worker's slots of one queue on a laptop.
const maxSlots = 256

func (q Queue) String() string { return fmt.Sprintf("%s:%d", q.Name, q.Slots) }

// ParseQueues reads "default:4"; a name alone has 4 slots.
func ParseQueues(texts []string) ([]Queue, error) {
	var queues []Queue
	for _, text := range texts {
		name, number, given := strings.Cut(text, ":")
		slots := 4
		if given {
			n, err := strconv.Atoi(number)
			if err != nil || n < 1 || n > maxSlots {
				return nil, fmt.Errorf("--queue %s: slots must be 1 to %d, as in default:4", text, maxSlots)
			}
			slots = n
		}
		if err := stepfleet.ValidateQueue(name); err != nil {
			return nil, fmt.Errorf("--queue %s: %w", text, err)
		}
		queues = append(queues, Queue{Name: name, Slots: slots})
	}
	return queues, nil
}
