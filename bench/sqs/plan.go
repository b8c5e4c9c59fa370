package main

import "time"

// plan is the sizes of a run.
type plan struct {
	Quick       bool
	Connections int
	BodyBytes   int
	Groups      int // of the FIFO loads
	Repetitions int // that count, after one that warms up
	Stage       time.Duration
	Warm        time.Duration // a stage of the repetition that warms up

	// The cycle of send, receive and delete, with the smaller and the larger of each pair.
	Backlogs   [2]int
	CycleGroup [2]int
	Cycles     int           // of each, in blocks that take turns
	Block      int           // cycles at a time
	Fill       time.Duration // after which a backlog is as large as it gets
	CyclesTime time.Duration // after which no further block begins

	LongPolls   int // times that one idle receiver is sent a message
	IdlePolls   int // that wait at the same time
	IdleTime    time.Duration
	IdlePlacing time.Duration // in which they all must have arrived
	IdleSettle  time.Duration

	LateMessages   int
	LateVisibility time.Duration
	LateTime       time.Duration // in which they all must have come back

	MemoryMessages int
	MemoryTime     time.Duration
}

// fullPlan takes about ten minutes with all servers.
func fullPlan() plan {
	return plan{
		Connections: 16, BodyBytes: 200, Groups: 1000, Repetitions: 3,
		Stage: 3 * time.Second, Warm: time.Second,
		Backlogs: [2]int{1_000, 1_000_000}, CycleGroup: [2]int{1, 100_000}, Cycles: 4000, Block: 200,
		Fill: 45 * time.Second, CyclesTime: 12 * time.Second,
		LongPolls: 60, IdlePolls: 1000, IdleTime: 10 * time.Second, IdlePlacing: 8 * time.Second, IdleSettle: time.Second,
		LateMessages: 500, LateVisibility: 2 * time.Second, LateTime: 10 * time.Second,
		MemoryMessages: 100_000, MemoryTime: 15 * time.Second,
	}
}

func quickPlan() plan {
	p := fullPlan()
	p.Quick, p.Repetitions = true, 1
	p.Stage, p.Warm = 150*time.Millisecond, 50*time.Millisecond
	p.Backlogs, p.CycleGroup, p.Cycles, p.Block = [2]int{100, 2_000}, [2]int{1, 500}, 100, 20
	p.Fill, p.CyclesTime = time.Second, time.Second
	p.LongPolls, p.IdlePolls, p.IdleTime, p.IdleSettle = 5, 100, 300*time.Millisecond, 100*time.Millisecond
	p.LateMessages, p.LateVisibility, p.LateTime = 50, time.Second, 3*time.Second
	p.MemoryMessages, p.MemoryTime = 10_000, time.Second
	return p
}

// peerFill is for how long a peer's backlog grows: what it holds then is what it is measured with.
const peerFill = 12 * time.Second
