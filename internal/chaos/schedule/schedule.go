// Package schedule plans the faults of a chaos run: which, when, against whom, for how long. A plan
// follows from its seed and duration alone, so that a run that found something can be had again.
//
// What a plan cannot know is which process holds what at its time: a fault names its victim by an
// index, which the nemesis counts round the processes that are there.
package schedule

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/stepfleet/stepfleet/internal/chaos/proxy"
)

// Fault is one planned fault.
type Fault struct {
	At   time.Duration `json:"at"` // since the plan began
	Kind Kind          `json:"kind"`
	// Victim picks one of those the kind can hit, modulo their number.
	Victim int           `json:"victim"`
	Hold   time.Duration `json:"hold"` // until it is healed; 0 for what heals by itself
	// Figures of some kinds: the byte of a reply, a delay, the share of calls.
	Byte  int           `json:"byte,omitempty"`
	Delay time.Duration `json:"delay,omitempty"`
	Share float64       `json:"share,omitempty"`
	// Offset is by how much a clock is stepped.
	Offset time.Duration `json:"offset,omitempty"`
}

// Plan is what a schedule is made from.
type Plan struct {
	Seed     uint64
	Duration time.Duration
	// TTL is the sessions'; processes are paused for half of it up to three times it.
	TTL time.Duration
	// RunLease is the sessions', too; a host is frozen for longer than that.
	RunLease time.Duration
	// PerMinute is how many faults must land in a minute; Least is how many of each kind.
	PerMinute int
	Least     int
	// Without are kinds that cannot hit what there is.
	Without []Kind
}

// Kinds returns those that the plan has.
func (p Plan) Kinds() []Kind {
	return slices.DeleteFunc(slices.Clone(Kinds), func(k Kind) bool { return slices.Contains(p.Without, k) })
}

// spare is by how much more is planned than must land: now and then a fault finds no victim, and
// the last ones are healed after the plan's end.
const spare = 1.5

// New returns the faults in the order of their times.
func New(p Plan) []Fault {
	chance := rand.New(rand.NewPCG(p.Seed, 0x9e3779b97f4a7c15))
	wanted := int(math.Ceil(float64(p.PerMinute) * p.Duration.Minutes() * spare))
	kinds := p.draw(chance, wanted)
	if len(kinds) == 0 {
		return nil
	}
	faults := make([]Fault, len(kinds))
	step := p.Duration / time.Duration(len(kinds))
	next := map[string]int{} // victims of a group take turns
	for i, kind := range kinds {
		at := step*time.Duration(i) + time.Duration(chance.Int64N(int64(step)))
		faults[i] = p.fault(chance, kind, at, next)
	}
	return faults
}

// heavyEvery is the time in which a long plan has the least of each heavy kind once more.
const heavyEvery = 3 * time.Minute

// draw picks the kinds: the least of each, and the rest by their weights. Heavy kinds, which take
// seconds of both processors to recover from, are spread over the whole time.
func (p Plan) draw(chance *rand.Rand, wanted int) []Kind {
	var heavy, light []Kind
	ofHeavy := max(p.Least, int(float64(p.Least)*p.Duration.Seconds()/heavyEvery.Seconds()))
	for _, kind := range p.Kinds() {
		if about[kind].heavy {
			heavy = append(heavy, slices.Repeat([]Kind{kind}, ofHeavy)...)
		} else {
			light = append(light, slices.Repeat([]Kind{kind}, p.Least)...)
		}
	}
	for len(heavy)+len(light) < wanted {
		light = append(light, weighted(chance, p.Kinds()))
	}
	shuffle := func(kinds []Kind) {
		chance.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	}
	shuffle(heavy)
	shuffle(light)
	return spread(heavy, light)
}

// spread puts the heavy ones at even distances among the light ones.
func spread(heavy, light []Kind) []Kind {
	total, used := len(heavy)+len(light), 0
	all := make([]Kind, 0, total)
	for i := range total {
		if used < (i+1)*len(heavy)/total {
			all = append(all, heavy[used])
			used++
		} else {
			all = append(all, light[i-used])
		}
	}
	return all
}

// weighted draws a light kind.
func weighted(chance *rand.Rand, kinds []Kind) Kind {
	sum := 0
	for _, kind := range kinds {
		sum += about[kind].weight
	}
	at := chance.IntN(sum)
	for _, kind := range kinds {
		if at -= about[kind].weight; at < 0 {
			return kind
		}
	}
	panic("the weights do not add up")
}

// fault fills in the figures.
func (p Plan) fault(chance *rand.Rand, kind Kind, at time.Duration, next map[string]int) Fault {
	a := about[kind]
	if _, begun := next[a.group]; !begun {
		next[a.group] = chance.IntN(1 << 10)
	}
	next[a.group]++
	f := Fault{At: at, Kind: kind, Victim: next[a.group]}
	between := func(low, high float64) time.Duration {
		return time.Duration((low + (high-low)*chance.Float64()) * float64(time.Second)).Round(time.Millisecond)
	}
	ttl, lease := p.TTL.Seconds(), p.RunLease.Seconds()
	switch a.hold {
	case holdPause:
		f.Hold = between(ttl/2, 3*ttl)
	case holdLease:
		f.Hold = between(lease+1, lease*1.5)
	case holdLink:
		f.Hold = between(ttl/3, 2*ttl)
	case holdShort:
		f.Hold = between(1, 4)
	}
	switch kind {
	case LinkReset:
		// Most replies are short.
		f.Byte = []int{0, 1, 5, chance.IntN(40), chance.IntN(200)}[chance.IntN(5)]
	case LinkDelay:
		f.Delay = between(0.02, 0.4)
	case SQSError, SQSThrottle, SQSLoss, SQSDuplicate, SQSReorder:
		f.Share = 0.3 + 0.7*chance.Float64()
	case KillEnding:
		f.Delay = between(0, 0.06)
	case ClockOffset:
		f.Offset = clockStep(chance)
	}
	return f
}

// clockStep is by how much a clock jumps, forwards or backwards: as far as a deadline is long, or minutes.
func clockStep(chance *rand.Rand) time.Duration {
	step := time.Duration(2+chance.IntN(14)) * time.Second
	if chance.IntN(2) == 0 {
		step = time.Duration(1+chance.IntN(60)) * time.Minute
	}
	if chance.IntN(2) == 0 {
		return -step
	}
	return step
}

// String says what it is, for people.
func (f Fault) String() string {
	return fmt.Sprintf("%s at %s of victim %d for %s", f.Kind, f.At.Round(time.Millisecond), f.Victim, f.Hold)
}

// Count returns how many of each kind there are.
func Count(faults []Fault) map[Kind]int {
	n := map[Kind]int{}
	for _, f := range faults {
		n[f.Kind]++
	}
	return n
}

// Mode returns the proxy's mode of a kind, "" for one that is not a link's.
func (k Kind) Mode() proxy.Mode {
	i := slices.Index([]Kind{LinkCut, LinkStall, LinkHalfOpen, LinkReset, LinkDelay}, k)
	if i < 0 {
		return ""
	}
	return proxy.Modes[i]
}
