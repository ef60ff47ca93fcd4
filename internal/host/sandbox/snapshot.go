package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"syscall"
	"time"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// Snapshot is a capture that belongs to no sandbox: immutable, whole by itself, found by an id.
type Snapshot struct {
	ID        string
	SandboxID string
	Template  string
	Resources runtime.Resources
	Runtime   string
	Isolation runtime.Isolation
	CreatedAt time.Time
	// SizeBytes is the real use of all that it needs but its template, OwnBytes the part that
	// nothing else needs.
	SizeBytes, OwnBytes int64
	// Frozen is how long its source stood still.
	Frozen   time.Duration
	Phases   []runtime.Phase
	DiskOnly bool
}

// CreateSnapshot saves a sandbox under an id of its own; a running one runs on. Repeated for
// the same sandbox and id it answers as before.
func (m *Manager) CreateSnapshot(ctx context.Context, op Operation, id, snapshot string) (Snapshot, View, error) {
	if err := checkSnapshotID(snapshot); err != nil {
		return Snapshot{}, View{}, err
	}
	s, ctx, leave, err := m.enter(ctx, id)
	if err != nil {
		return Snapshot{}, View{}, err
	}
	defer leave()
	if have, err := m.Snapshot(snapshot); !fault.Is(err, fault.NotFound) {
		if err == nil && have.SandboxID != id {
			err = fault.New(fault.AlreadyExists, "create", "snapshot "+snapshot, "it is one of sandbox "+have.SandboxID)
		}
		return have, s.View(), err
	}
	err = m.snapshot(ctx, s, op, snapshot, runtime.CaptureOptions{})
	if err != nil {
		return Snapshot{}, View{}, fault.Wrap(explain(ctx, err), "snapshot", "sandbox "+id)
	}
	out, err := m.Snapshot(snapshot)
	return out, s.View(), err
}

func checkSnapshotID(id string) error {
	if !idPattern.MatchString(id) {
		return fault.New(fault.Invalid, "create", "snapshot", "snapshot_id is "+id+": it must be 20 characters of a-z and 0-9")
	}
	return nil
}

// snapshot takes one of a sandbox whose gate is held, and publishes it.
func (m *Manager) snapshot(ctx context.Context, s *Sandbox, op Operation, id string, opts runtime.CaptureOptions) error {
	o, release, err := m.takeOrigin(ctx, s, op, id, opts, newStopwatch())
	if err != nil {
		return err
	}
	defer release()
	err = m.publishSnapshot(m.cfg.Data.SnapshotStage(id), m.cfg.Data.Snapshot(id), o.man)
	if err != nil {
		return classify(err, meanwhile(s.journal().State))
	}
	m.noteOperation(s, op)
	return failpoint.Hit("sandbox.snapshot.written")
}

// meanwhile is for errors: what the source of a snapshot does.
func meanwhile(state State) string {
	if state == Paused {
		return "the sandbox stays paused: "
	}
	return "the sandbox still runs: "
}

// noteOperation remembers an operation that changes nothing else of the sandbox. When that
// cannot be written down, a repetition finds what the operation made.
func (m *Manager) noteOperation(s *Sandbox, op Operation) {
	if err := s.update(false, func(j *journal) { j.note(op.ID) }); err != nil {
		m.log.Warn("an operation is not written down", "sandbox", s.ID(), "operation", op.ID, "error", err)
	}
}

// takeOrigin makes the stage of an id hold all that a new sandbox needs of s, whose gate is held,
// and which runs on or stays paused. When it fails, all is as it was; else release removes what
// is left of the stage.
func (m *Manager) takeOrigin(ctx context.Context, s *Sandbox, op Operation, id string, opts runtime.CaptureOptions, clock *stopwatch) (_ origin, release func(), err error) {
	j := s.journal()
	if err := fence(j, op); err != nil {
		return origin{}, nil, err
	}
	if j.State != Running && j.State != Paused {
		return origin{}, nil, need(j.ID, j.State, Running, "snapshot")
	}
	if err := errors.Join(m.room("", ""), heldBack(j, fault.ResourceExhausted, "snapshot")); err != nil {
		return origin{}, nil, err
	}
	release = m.stage(id)
	defer func() {
		if err != nil {
			release()
			err = classify(err, meanwhile(s.journal().State))
		}
	}()
	stage := m.cfg.Data.SnapshotStage(id)
	if err := errors.Join(os.RemoveAll(stage), os.MkdirAll(stage, 0o700)); err != nil {
		return origin{}, nil, fault.Wrap(err, "make", "snapshot directory")
	}
	o, err := m.copyState(ctx, s, stage, opts, clock)
	return o, release, err
}

// copyState fills the stage from a running sandbox's present state, or a paused one's capture.
func (m *Manager) copyState(ctx context.Context, s *Sandbox, stage string, opts runtime.CaptureOptions, clock *stopwatch) (origin, error) {
	var (
		o   origin
		err error
	)
	if j := s.journal(); j.State == Paused {
		o, err = pausedOrigin(s.dir.Capture(j.Capture), j)
	} else {
		o, err = m.captureRunning(ctx, s, stage, opts, clock)
	}
	if err != nil {
		return origin{}, err
	}
	record, err := s.rt.Link(ctx, o.capture, stage, m.cfg.Data.Sandboxes())
	if err != nil {
		return origin{}, err
	}
	clock.mark("link")
	o.capture = runtime.Capture{Dir: stage, Record: record}
	o.man.Record, o.man.Phases, o.man.CreatedAt = record, clock.phases, m.cfg.Clock()
	return o, failpoint.Hit("sandbox.snapshot.linked")
}

// pausedOrigin is a paused sandbox's capture; what was changed of the sandbox since is the
// journal's.
func pausedOrigin(dir string, j journal) (origin, error) {
	c, was, err := readCapture(dir)
	man := manifestOf(j, was.Record)
	man.Generation, man.ControlToken, man.DiskOnly = was.Generation, was.ControlToken, was.DiskOnly
	return origin{capture: c, man: man}, err
}

// captureRunning saves a running sandbox, which stands still for no longer than that takes: when
// it returns, the sandbox runs again, whoever gave up waiting.
func (m *Manager) captureRunning(ctx context.Context, s *Sandbox, stage string, opts runtime.CaptureOptions, clock *stopwatch) (origin, error) {
	if err := s.update(false, func(j *journal) { j.State = Snapshotting }); err != nil {
		return origin{}, err
	}
	began := time.Now()
	record, err := m.freezeAndCapture(ctx, s, stage, opts, clock)
	if e := m.finishSnapshot(ctx, s); e != nil {
		return origin{}, errors.Join(e, err)
	}
	clock.mark("thaw")
	if err != nil {
		return origin{}, err
	}
	man := manifestOf(s.journal(), record)
	man.Frozen, man.DiskOnly = time.Since(began), opts.DiskOnly
	return origin{capture: runtime.Capture{Dir: stage, Record: record}, man: man}, failpoint.Hit("sandbox.snapshot.thawed")
}

func (m *Manager) freezeAndCapture(ctx context.Context, s *Sandbox, stage string, opts runtime.CaptureOptions, clock *stopwatch) (json.RawMessage, error) {
	in, _, guest := s.parts()
	ctx = untilExit(ctx, in)
	if err := errors.Join(failpoint.Hit("sandbox.snapshot.marked"), guest.Freeze(ctx, freezeSync)); err != nil {
		return nil, explain(ctx, err)
	}
	guest.CloseIdle()
	clock.mark("quiesce")
	if err := errors.Join(failpoint.Hit("sandbox.snapshot.quiesced"), in.Freeze(ctx)); err != nil {
		return nil, explain(ctx, err)
	}
	clock.mark("freeze")
	if err := failpoint.Hit("sandbox.snapshot.frozen"); err != nil {
		return nil, err
	}
	opts.Parent = m.parentOf(s)
	record, stats, err := in.Capture(ctx, stage, opts)
	if err != nil {
		return nil, explain(ctx, err)
	}
	clock.phases = append(clock.phases, stats.Phases...)
	clock.last = time.Now()
	return record, failpoint.Hit("sandbox.snapshot.captured")
}

// publishSnapshot makes a staged snapshot one: the rename is the commit point.
func (m *Manager) publishSnapshot(stage, dir string, man manifest) error {
	if err := writeManifest(stage, man); err != nil {
		return err
	}
	if err := failpoint.Hit("sandbox.snapshot.manifest"); err != nil {
		return err
	}
	if err := os.Rename(stage, dir); err != nil {
		return fault.Wrap(err, "publish", "snapshot")
	}
	parent := filepath.Dir(dir)
	if err := errors.Join(syncDir(parent), syncDir(filepath.Dir(parent))); err != nil {
		// The disk does not promise to keep it.
		return errors.Join(fault.Wrap(err, "sync", "snapshot"), os.RemoveAll(dir))
	}
	return failpoint.Hit("sandbox.snapshot.published")
}

// finishSnapshot lets the source of a snapshot, whatever became of that, run on. A source that
// cannot be thawed is failed, with its disk kept; one that is only slow keeps its state.
func (m *Manager) finishSnapshot(ctx context.Context, s *Sandbox) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	if err := m.thaw(ctx, s); err != nil {
		return m.unthawed(ctx, s, err, "it could not be thawed after a snapshot: "+fault.Message(err))
	}
	m.settleThawed(s)
	return nil
}

// dropSnapshotStages removes what a dead agent left of snapshots and forks.
func (m *Manager) dropSnapshotStages() error {
	left, err := filepath.Glob(m.cfg.Data.SnapshotStage("*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return fault.Wrap(err, "remove", "unfinished snapshots")
}

// stage notes that a snapshot is in the making: its stage is no leak.
func (m *Manager) stage(id string) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.staging[id] = true
	return func() {
		// Published, it is not there any more.
		if err := os.RemoveAll(m.cfg.Data.SnapshotStage(id)); err != nil {
			m.log.Warn("unfinished snapshot stays for the collector", "snapshot", id, "error", err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.staging, id)
	}
}

// inStaging says whether a snapshot is in the making.
func (m *Manager) inStaging(id string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.staging[id]
}

// DeleteSnapshot removes a snapshot; one that is not there is removed already. What was made of
// it has links of its own to all that it needs.
func (m *Manager) DeleteSnapshot(ctx context.Context, id string) error {
	if err := checkSnapshotID(id); err != nil {
		return err
	}
	_, done, err := m.call(ctx)
	if err != nil {
		return err
	}
	defer done()
	remove, err := m.discard(m.cfg.Data.Snapshot(id), "snapshot-"+id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(err, "delete", "snapshot "+id)
	}
	defer remove()
	err = errors.Join(syncDir(m.cfg.Data.Snapshots()), failpoint.Hit("sandbox.unsnap.renamed"))
	if err != nil {
		return fault.Wrap(err, "delete", "snapshot "+id)
	}
	m.log.Info("snapshot deleted", "snapshot", id)
	return nil
}

// openSnapshot reads a snapshot to start from.
func (m *Manager) openSnapshot(id string) (origin, error) {
	if err := checkSnapshotID(id); err != nil {
		return origin{}, err
	}
	c, man, err := readCapture(m.cfg.Data.Snapshot(id))
	if errors.Is(err, fs.ErrNotExist) {
		return origin{}, fault.New(fault.NotFound, "find", "snapshot "+id, "this host has none of that id").
			WithHint("list them: roost snapshot ls")
	}
	return origin{capture: c, man: man}, fault.Wrap(err, "read", "snapshot "+id)
}

// Snapshot describes one.
func (m *Manager) Snapshot(id string) (Snapshot, error) {
	o, err := m.openSnapshot(id)
	if err != nil {
		return Snapshot{}, err
	}
	total, own := linkedUse(o.capture.Dir)
	return Snapshot{
		ID: id, SandboxID: o.man.SandboxID, Template: o.man.TemplateName, Resources: o.man.Resources,
		Runtime: o.man.Runtime, Isolation: o.man.Isolation, CreatedAt: o.man.CreatedAt,
		SizeBytes: total, OwnBytes: own, Frozen: o.man.Frozen, Phases: o.man.Phases, DiskOnly: o.man.DiskOnly,
	}, nil
}

// Snapshots describes all, oldest first. One that cannot be read is logged and left out: it
// must not hide the others.
func (m *Manager) Snapshots() ([]Snapshot, error) {
	ids, err := m.snapshotIDs()
	if err != nil {
		return nil, err
	}
	out := make([]Snapshot, 0, len(ids))
	for _, id := range ids {
		snap, err := m.Snapshot(id)
		if err != nil {
			if !fault.Is(err, fault.NotFound) { // deleted since
				m.log.Error("snapshot cannot be read", "snapshot", id, "error", err)
			}
			continue
		}
		out = append(out, snap)
	}
	sort.Slice(out, func(i, k int) bool { return out[i].CreatedAt.Before(out[k].CreatedAt) })
	return out, nil
}

// snapshotIDs are those of the published snapshots.
func (m *Manager) snapshotIDs() ([]string, error) {
	entries, err := os.ReadDir(m.cfg.Data.Snapshots())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(err, "list", "snapshots")
	}
	var ids []string
	for _, e := range entries {
		if idPattern.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// linkedUse sums blocks × 512 below a directory: of all files, and of those that have no other
// name, which removing the directory gives back.
func linkedUse(dir string) (total, own int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // what vanished meanwhile takes no space
		}
		if info, err := d.Info(); err == nil {
			st := info.Sys().(*syscall.Stat_t)
			total += st.Blocks * 512
			if st.Nlink == 1 {
				own += st.Blocks * 512
			}
		}
		return nil
	})
	return total, own
}
