package sqs

import (
	"encoding/json"
	"fmt"
	"hash/crc64"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/stepfleet/stepfleet/localaws/api"
	"github.com/stepfleet/stepfleet/localaws/journal"
)

// ticket is a place in the journal, by which an operation waits for its records.
type ticket = journal.Ticket

// record is what the journal holds: what is true of a queue after it. In is the queue's number.
type record struct {
	In      uint64         `json:"q"`
	Queue   *queueRecord   `json:"queue,omitempty"`
	Delayed bool           `json:"delayed,omitempty"` // by Queue's new delay, what was never received
	Gone    bool           `json:"gone,omitempty"`
	Purge   bool           `json:"purge,omitempty"`
	Put     *putRecord     `json:"put,omitempty"`
	Update  []updateRecord `json:"upd,omitempty"`
	Del     []uint64       `json:"del,omitempty"`
	Dedup   *dedupRecord   `json:"dedup,omitempty"`
	From    uint64         `json:"from,omitempty"` // Put came from this queue,
	Left    uint64         `json:"left,omitempty"` // where it had this number
	Deleted []deletedName  `json:"deleted,omitempty"`
}

type queueRecord struct {
	Region     string            `json:"region"`
	Account    string            `json:"account"`
	Name       string            `json:"name"`
	Attributes map[string]string `json:"attributes"`
	Tags       map[string]string `json:"tags,omitempty"`
	Created    time.Time         `json:"created"`
	Modified   time.Time         `json:"modified"`
	Purged     time.Time         `json:"purged"`
	PerGroup   bool              `json:"perGroup,omitempty"`
	Seq        uint64            `json:"seq"`
}

type putRecord struct {
	updateRecord
	ID         string                    `json:"id"`
	Body       string                    `json:"body"`
	Attributes map[string]AttributeValue `json:"attributes,omitempty"`
	Trace      string                    `json:"trace,omitempty"`
	Group      string                    `json:"group,omitempty"`
	DedupID    string                    `json:"dedupId,omitempty"`
	Sender     string                    `json:"sender,omitempty"`
	DeadFrom   string                    `json:"deadFrom,omitempty"`
	Sent       time.Time                 `json:"sent"`
	Elsewhere  int                       `json:"elsewhere,omitempty"`
}

// updateRecord is what a receive or a change of visibility alters.
type updateRecord struct {
	Seq           uint64    `json:"seq"`
	Nonce         uint64    `json:"nonce,omitempty"`
	Due           time.Time `json:"due,omitzero"`   // hidden until then
	Since         time.Time `json:"since,omitzero"` // visible since then; by itself since it was sent
	Received      time.Time `json:"received,omitzero"`
	FirstReceived time.Time `json:"first,omitzero"`
	Receives      int       `json:"n,omitempty"`
	InFlight      bool      `json:"flying,omitempty"`
}

type dedupRecord struct {
	Key   string    `json:"key"`
	ID    string    `json:"id"`
	Seq   uint64    `json:"seq"`
	Until time.Time `json:"until"`
}

// deletedName is a queue that was deleted, whose name stays taken for a while.
type deletedName struct {
	Region  string    `json:"region"`
	Account string    `json:"account"`
	Name    string    `json:"name"`
	At      time.Time `json:"at"`
}

func putOf(m *message) *putRecord {
	return &putRecord{
		updateRecord: updateOf(m), ID: m.id, Body: m.body, Attributes: m.attributes, Trace: m.trace, Group: m.group,
		DedupID: m.dedup, Sender: m.sender, DeadFrom: m.deadFrom, Sent: m.sent, Elsewhere: m.elsewhere,
	}
}

func updateOf(m *message) updateRecord {
	r := updateRecord{
		Seq: m.seq, Nonce: m.nonce, Received: m.received, FirstReceived: m.firstReceived, Receives: m.receives, InFlight: m.inFlight,
	}
	switch {
	case m.slots[slotHidden] >= 0:
		r.Due = m.due
	case !m.due.Equal(m.sent):
		r.Since = m.due
	}
	return r
}

// keeper writes records to the journal; nil keeps nothing.
type keeper struct {
	log     *journal.Log
	logger  *slog.Logger
	rotates sync.WaitGroup
	mu      sync.Mutex
	busy    bool
	closing bool
	err     error
}

func (k *keeper) append(r record) ticket {
	text, err := json.Marshal(r)
	if err != nil {
		panic(fmt.Sprintf("sqs: a record does not encode: %v", err)) // only strings, numbers and times
	}
	return k.log.Append(text)
}

// wait returns when the journal has the ticket. A failure is kept for failed.
func (k *keeper) wait(t ticket) {
	if k == nil || t == 0 {
		return
	}
	if err := k.log.Wait(t); err != nil {
		k.fail(err)
	}
}

func (k *keeper) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.err = err
		k.logger.Error("the journal failed: no operation is acknowledged any more", "error", err)
	}
}

// failed returns why nothing may be acknowledged any more, or nil.
func (k *keeper) failed() error {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

func (q *queue) log(r record) {
	if q.service.journal == nil {
		return
	}
	r.In = q.uid
	q.written = q.service.journal.append(r)
}

// logDeleted records that a name stays taken; the record of the queue's end, which is waited for,
// comes after it.
func (k *keeper) logDeleted(name queueKey, at time.Time) {
	if k != nil {
		k.append(record{Deleted: []deletedName{{name.region, name.account, name.name, at}}})
	}
}

func (q *queue) logPut(m *message, d *dedupRecord) {
	if q.service.journal != nil {
		q.log(record{Put: putOf(m), Dedup: d})
	}
}

func (q *queue) logUpdates(ms ...*message) {
	if q.service.journal == nil {
		return
	}
	r := record{Update: make([]updateRecord, 0, len(ms))}
	for _, m := range ms {
		r.Update = append(r.Update, updateOf(m))
	}
	q.log(r)
}

// deletesPerRecord keeps a record small, however much expires at a time.
const deletesPerRecord = 100_000

func (q *queue) logDeletes(seqs ...uint64) {
	if q.service.journal == nil {
		return
	}
	for part := range slices.Chunk(seqs, deletesPerRecord) {
		q.log(record{Del: part})
	}
}

func (q *queue) logQueue() {
	if q.service.journal != nil {
		q.log(record{Queue: q.describe()})
	}
}

// logArrival records in one piece that m came here and left the other queue.
func (q *queue) logArrival(m *message, from *queue, left uint64) {
	if q.service.journal != nil {
		q.log(record{Put: putOf(m), From: from.uid, Left: left})
	}
}

// logDeparture records that a message left for a queue that was gone.
func (q *queue) logDeparture(left uint64) ticket {
	if q.service.journal == nil {
		return 0
	}
	return q.service.journal.append(record{In: q.uid, Del: []uint64{left}})
}

func (q *queue) describe() *queueRecord {
	return &queueRecord{
		Region: q.key.region, Account: q.key.account, Name: q.key.name, Attributes: maps.Clone(q.attributes), Tags: maps.Clone(q.tags),
		Created: q.created, Modified: q.modified, Purged: q.purged, PerGroup: q.perGroup, Seq: q.seq,
	}
}

// restored is what a journal says, by queue.
type restored struct {
	queues  map[uint64]*restoredQueue
	deleted []deletedName
	digest  uint64 // of every record
}

type restoredQueue struct {
	queueRecord
	messages map[uint64]*putRecord
	sends    []dedupRecord
}

var digestTable = crc64.MakeTable(crc64.ECMA)

// apply takes one record in.
func (all *restored) apply(text []byte) error {
	all.digest = crc64.Update(all.digest, digestTable, text)
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return err
	}
	all.deleted = append(all.deleted, r.Deleted...)
	if from := all.queues[r.From]; from != nil && r.Left != 0 { // messages are numbered from 1
		delete(from.messages, r.Left)
	}
	if r.Queue != nil {
		all.describe(r.In, r.Queue)
	}
	q := all.queues[r.In]
	switch {
	case q == nil: // of a queue that a later snapshot no longer has
	case r.Gone:
		delete(all.queues, r.In)
	default:
		q.apply(r)
	}
	return nil
}

func (all *restored) describe(uid uint64, r *queueRecord) {
	q := all.queues[uid]
	if q == nil {
		q = &restoredQueue{messages: map[uint64]*putRecord{}}
		all.queues[uid] = q
	}
	seq := q.Seq
	q.queueRecord = *r
	q.Seq = max(seq, r.Seq)
}

// delayAnew does to messages what the change of a FIFO queue's delay did.
func (q *restoredQueue) delayAnew() {
	delay := settingsOf(q.Attributes).delay
	for _, m := range q.messages {
		if m.Receives > 0 {
			continue
		}
		m.Due, m.Since = time.Time{}, time.Time{}
		if delay > 0 {
			m.Due = m.Sent.Add(delay)
		}
	}
}

func (q *restoredQueue) apply(r record) {
	if r.Delayed {
		q.delayAnew()
	}
	if r.Purge {
		q.messages, q.sends = map[uint64]*putRecord{}, nil
	}
	if r.Put != nil {
		q.messages[r.Put.Seq] = r.Put
		q.Seq = max(q.Seq, r.Put.Seq)
	}
	for _, u := range r.Update {
		if m := q.messages[u.Seq]; m != nil {
			m.updateRecord = u
		}
	}
	for _, seq := range r.Del {
		delete(q.messages, seq)
	}
	if r.Dedup != nil {
		q.sends = append(q.sends, *r.Dedup)
	}
}

// restore opens the journal in dir and makes the queues that it holds. Ids go on from what the
// journal says, as a seed that is given again would make those anew that are in it.
func (s *Service) restore(dir string, o journal.Options) error {
	all := &restored{queues: map[uint64]*restoredQueue{}}
	log, err := journal.Open(dir, o, all.apply)
	if err != nil {
		return err
	}
	if all.digest != 0 {
		s.ids = api.NewIDs(s.ids.Uint64() ^ all.digest)
	}
	for uid, r := range all.queues {
		s.queues.put(s.rebuild(uid, r))
	}
	for _, d := range all.deleted {
		s.queues.bury(queueKey{d.Region, d.Account, d.Name}, d.At)
	}
	if n := log.Cut(); n > 0 {
		s.log.Warn("the journal ended in the middle of a record, which was cut off: its call had no answer, unless the power failed", "bytes", n)
	}
	s.journal = &keeper{log: log, logger: s.log}
	return nil
}

func (s *Service) rebuild(uid uint64, r *restoredQueue) *queue {
	q := newQueue(s, uid, queueKey{r.Region, r.Account, r.Name}, r.Attributes, r.Tags)
	q.created, q.modified, q.purged, q.perGroup = r.Created, r.Modified, r.Purged, r.PerGroup
	now := s.clock.Now()
	for _, seq := range slices.Sorted(maps.Keys(r.messages)) {
		q.reinsert(r.messages[seq])
	}
	q.seq = r.Seq
	for _, d := range r.sends {
		if d.Until.After(now) {
			q.sends.put(d.Key, accepted{d.ID, d.Seq}, d.Until)
		}
	}
	return q
}

func (q *queue) reinsert(p *putRecord) {
	m := &message{
		content: content{
			id: p.ID, body: p.Body, md5: md5Text(p.Body), attributes: p.Attributes, trace: p.Trace, group: p.Group,
			dedup: p.DedupID, sender: p.Sender, deadFrom: p.DeadFrom,
		},
		seq: p.Seq, nonce: p.Nonce, sent: p.Sent, due: p.Due, received: p.Received, firstReceived: p.FirstReceived,
		receives: p.Receives, elsewhere: p.Elsewhere,
	}
	hidden := !p.Due.IsZero()
	switch {
	case hidden:
	case p.Since.IsZero():
		m.due = p.Sent
	default:
		m.due = p.Since
	}
	q.insert(m, hidden)
	if p.InFlight && hidden {
		m.inFlight = true
		m.lane.flying++
		q.inFlight++
		q.update(m.lane)
	}
}

// compact writes a snapshot in the background if the journal has grown enough. Every mutating
// operation may call it.
func (s *Service) compact() {
	k := s.journal
	if k == nil || !k.log.Due() {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy || k.closing {
		return
	}
	k.busy = true
	k.rotates.Go(func() {
		if err := k.log.Rotate(s.emit); err != nil {
			k.logger.Error("snapshot of the queues", "error", err)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		k.busy = false
	})
}

// emit writes every queue as records.
func (s *Service) emit(put func([]byte) error) error {
	write := func(r record) error {
		text, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return put(text)
	}
	if deleted := s.queues.buried(); len(deleted) > 0 {
		if err := write(record{Deleted: deleted}); err != nil {
			return err
		}
	}
	for _, q := range s.queues.all() {
		if err := q.emit(write); err != nil {
			return err
		}
	}
	return nil
}

// emitAtOnce is for how many messages a snapshot holds a queue up at a time.
const emitAtOnce = 1000

// emit writes the queue as records. It holds the queue up only to note what there is and to copy a
// few messages at a time: what changes meanwhile is in the new log, which is read after these.
func (q *queue) emit(write func(record) error) error {
	described, messages, sends := q.contents()
	if described == nil {
		return nil
	}
	if err := write(record{In: q.uid, Queue: described}); err != nil {
		return err
	}
	for part := range slices.Chunk(messages, emitAtOnce) {
		for _, put := range q.puts(part) {
			if err := write(record{In: q.uid, Put: put}); err != nil {
				return err
			}
		}
	}
	for _, r := range sends {
		d := &dedupRecord{Key: r.key, ID: r.value.id, Seq: r.value.seq, Until: r.until}
		if err := write(record{In: q.uid, Dedup: d}); err != nil {
			return err
		}
	}
	return nil
}

// contents returns what there is in the queue, or nothing of one that is gone. What left is ours
// until the other queue's record says that it left.
func (q *queue) contents() (*queueRecord, []*message, []*remember[accepted]) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return nil, nil, nil
	}
	messages := slices.AppendSeq(make([]*message, 0, q.messages.n+len(q.leaving)), q.messages.all())
	messages = slices.AppendSeq(messages, maps.Values(q.leaving))
	return q.describe(), messages, slices.Collect(maps.Values(q.sends.entries))
}

// puts returns the records of those of the messages that are still ours.
func (q *queue) puts(messages []*message) []*putRecord {
	q.mu.Lock()
	defer q.mu.Unlock()
	puts := make([]*putRecord, 0, len(messages))
	for _, m := range messages {
		if q.messages.get(m.seq) == m || q.leaving[m.seq] == m {
			puts = append(puts, putOf(m))
		}
	}
	return puts
}

// Close writes what the journal has not yet and closes it. Nothing may be called after.
func (s *Service) Close() error {
	k := s.journal
	if k == nil {
		return nil
	}
	k.mu.Lock()
	k.closing = true
	k.mu.Unlock()
	k.rotates.Wait()
	return k.log.Close()
}
