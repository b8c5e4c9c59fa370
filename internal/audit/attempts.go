package audit

// triedOnce looks at the runs that were said to be without retries.
func triedOnce(f *facts, v *finding) {
	if f.Runs == nil {
		v.unchecked("nobody said which runs are without retries")
		return
	}
	once := map[string]bool{}
	for _, run := range f.ended {
		if run.NoRetries {
			once[run.ID] = true
		}
	}
	for _, a := range f.attempts {
		if a.run || !once[a.RunID] {
			continue
		}
		v.cases(1)
		if a.Attempt > 0 {
			v.bad(a.id, a.Key, "it is attempt %d of a step that has no retries", a.Attempt)
		}
	}
}

// process is a process for as long as its host is up: its number alone is given out again.
type process struct {
	worker string
	pid    int
	born   int64
}

// ownProcess goes by what user code says of the process that it is in.
func ownProcess(f *facts, v *finding) {
	if f.Effects == nil {
		v.unchecked("there is no effect log")
		return
	}
	if len(f.processes) == 0 {
		v.unchecked("the effect log does not say of these runs' code in which process it began")
	}
	v.found(f, foundShared)
	v.cases(len(f.processes))
}

// shares notes whose process it is in which an attempt has begun.
func (f *facts) shares(e Effect) {
	if e.Event != EffectBegin || e.Born == 0 {
		return
	}
	p := process{e.Worker, e.PID, e.Born}
	first, known := f.processes[p]
	switch {
	case !known:
		f.processes[p] = e.Key
	case first != e.Key:
		f.find(foundShared, f.idOf(e.Key), e.Key, "its code began in process %d of %s, which had run %s", e.PID, e.Worker, first)
	}
}
