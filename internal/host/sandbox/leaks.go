package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/uids"
)

// Leak is something on the host that belongs to nobody, or that a journal names and is not there.
type Leak struct {
	// Kind is process, network, disk, snapshot, stage, template, cgroup or sandbox.
	Kind, Name, Detail string
	// Bytes is real use on the host.
	Bytes int64
	// Removed: this call did; Error says why it could not.
	Removed bool
	Error   string
}

// Leaks compares what exists on the host with what the journals want, both ways. It changes
// nothing; with fix it does first what the collector does, and then removes what still belongs to
// nobody. What is in the making is nobody's leak, nor is what another installation has.
func (m *Manager) Leaks(ctx context.Context, fix bool) ([]Leak, error) {
	ctx, done, err := m.call(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	r := &leakReport{fix: fix}
	if fix {
		err = m.finishAll(ctx)
		m.releaseAgain(ctx)
	}
	err = errors.Join(err,
		m.runningLeaks(ctx, r), m.networkLeaks(ctx, r), m.trashLeaks(r),
		m.directoryLeaks(r), m.snapshotLeaks(r), m.sandboxLeaks(ctx, r))
	slices.SortFunc(r.leaks, func(a, b Leak) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return r.leaks, fault.Wrap(err, "look for", "leaks")
}

// leakReport collects leaks, and removes them when it shall.
type leakReport struct {
	fix   bool
	leaks []Leak
}

// add notes a leak and how it is removed.
func (r *leakReport) add(l Leak, remove func() error) {
	if r.fix {
		err := remove()
		if l.Removed = err == nil; err != nil {
			l.Error = fault.Message(err)
		}
	}
	r.leaks = append(r.leaks, l)
}

// directory is add for a file or directory, which is removed as it is.
func (r *leakReport) directory(kind, path, name, detail string) {
	if _, err := os.Lstat(path); err != nil {
		return // gone meanwhile: somebody was about to remove it
	}
	l := Leak{Kind: kind, Name: name, Detail: detail, Bytes: allocated(path)}
	r.add(l, func() error { return os.RemoveAll(path) })
}

// keep is add for what is nobody's to remove without being asked; why says what to do.
func (r *leakReport) keep(l Leak, why string) { r.add(l, func() error { return errors.New(why) }) }

// runningLeaks are processes and cgroups of uids that no journal names. No uid is taken
// meanwhile: what is nobody's when it is looked at is nobody's when it is ended.
func (m *Manager) runningLeaks(ctx context.Context, r *leakReport) error {
	m.starting.Lock()
	defer m.starting.Unlock()
	owners := m.owners()
	all, err := m.cfg.UIDs.Processes()
	if err != nil {
		return err
	}
	for _, p := range all {
		if _, owned := owners[p.UID]; owned {
			continue
		}
		l := Leak{Kind: "process", Name: fmt.Sprintf("pid %d", p.PID), Detail: fmt.Sprintf("%s under uid %d, which is no sandbox's", p.Command, p.UID)}
		r.add(l, func() error { return uids.Kill(ctx, p.UID) })
	}
	var errs []error
	for _, rt := range m.cfg.Runtimes {
		if h, ok := rt.(runtime.Holder); ok {
			errs = append(errs, m.heldLeaks(ctx, r, h, owners))
		}
	}
	return errors.Join(errs...)
}

// heldLeaks are cgroups and devices of starts that are over.
func (m *Manager) heldLeaks(ctx context.Context, r *leakReport, rt runtime.Holder, owners map[int]string) error {
	held, err := rt.Held(ctx)
	for _, h := range held {
		if m.isOwned(h, owners) {
			continue
		}
		l := Leak{Kind: h.Kind, Name: h.Name, Detail: "of a start that is over"}
		r.add(l, func() error { return rt.GiveBack(ctx, h) })
	}
	return err
}

// isOwned tells whether a sandbox or template in being has a thing on the host: by the uid of the
// start that made it, or by the file that it stands for. One of another installation's uids is not
// ours to judge.
func (m *Manager) isOwned(h runtime.Held, owners map[int]string) bool {
	if h.UID != 0 {
		return !m.cfg.UIDs.Contains(h.UID) || owners[h.UID] == h.ID
	}
	return m.isStarting(owners) || h.Path != "" && m.hasFile(h.Path, owners)
}

// isStarting tells whether something is being started or ended. What a half-made disk stands on is not all its
// own: nothing is a leak meanwhile.
func (m *Manager) isStarting(owners map[int]string) bool {
	for _, id := range owners {
		s, err := m.lookup(id)
		if err != nil || !s.journal().State.isSettled() {
			return true // a template's boot is in no list
		}
	}
	return false
}

// isSettled tells whether nothing is being done to a sandbox of that state.
func (s State) isSettled() bool { return s == Paused || s == Running || s == Failed || s == Lost }

// hasFile tells whether a file lies in the directory of a sandbox that has a slot. A disk is in use
// only while its sandbox has one.
func (m *Manager) hasFile(path string, owners map[int]string) bool {
	rel, below, err := paths.Below(path, m.cfg.Data.Sandboxes())
	if err != nil || !below {
		return false
	}
	of, _, _ := strings.Cut(rel, string(filepath.Separator))
	for _, id := range owners {
		if id == of {
			return true
		}
	}
	return false
}

// owners are the sandboxes, or templates, of the uids in use.
func (m *Manager) owners() map[int]string {
	slots, _ := m.wanted()
	out := map[int]string{}
	for slot, id := range slots {
		out[m.cfg.UIDs.UID(slot)] = id
	}
	return out
}

// networkLeaks are slots that nobody holds, and sandboxes whose slot is gone.
func (m *Manager) networkLeaks(ctx context.Context, r *leakReport) error {
	slots, _ := m.wanted()
	strays, missing, err := m.cfg.Network.Strays(slots)
	if err != nil {
		return err
	}
	for _, stray := range strays {
		l := Leak{Kind: "network", Name: fmt.Sprintf("slot %d", stray.Slot), Detail: strings.Join(stray.Names, ", ") + ": no sandbox has it"}
		r.add(l, func() error { return m.removeSlot(ctx, slots, stray.Slot) })
	}
	for _, n := range missing {
		s, err := m.lookup(slots[n])
		if err != nil || s.journal().Slot != n {
			continue // given back meanwhile
		}
		r.keep(Leak{Kind: "network", Name: fmt.Sprintf("slot %d", n), Detail: "sandbox " + s.ID() + " has it, and nothing of it exists"},
			"the sandbox cannot be reached any more: pause or remove it")
	}
	return nil
}

// removeSlot has the network's collector remove what it removes, and says whether a slot was of it.
func (m *Manager) removeSlot(ctx context.Context, keep map[int]string, n int) error {
	if err := m.cfg.Network.Collect(ctx, keep); err != nil {
		return err
	}
	strays, _, err := m.cfg.Network.Strays(keep)
	for _, s := range strays {
		if s.Slot == n {
			return errors.New(strings.Join(s.Names, ", ") + " would not go")
		}
	}
	return err
}

// trashLeaks are what lies in the trash and nobody is removing, and the directories of templates'
// boots that nobody is at.
func (m *Manager) trashLeaks(r *leakReport) error {
	entries, err := os.ReadDir(m.cfg.Data.Trash())
	if err != nil {
		return fault.Wrap(err, "list", "trash")
	}
	m.mu.RLock()
	booting := len(m.building) > 0
	m.mu.RUnlock()
	for _, e := range entries {
		path := filepath.Join(m.cfg.Data.Trash(), e.Name())
		_, busy := m.discarding.Load(path)
		kind, detail := "disk", "it was being deleted"
		if strings.HasPrefix(e.Name(), "boot-") {
			// One that is listed before its boot began to hold a slot does not exist.
			kind, detail, busy = "template", "of a template's boot that is over", booting
		}
		if !busy {
			r.directory(kind, path, ".trash/"+e.Name(), detail)
		}
	}
	return nil
}

// directoryLeaks are directories of sandboxes that nobody knows.
func (m *Manager) directoryLeaks(r *leakReport) error {
	entries, err := os.ReadDir(m.cfg.Data.Sandboxes())
	if err != nil {
		return fault.Wrap(err, "list", "sandbox directories")
	}
	for _, e := range entries {
		id := e.Name()
		if !idPattern.MatchString(id) || m.knows(id) {
			continue
		}
		dir := m.cfg.Data.Sandbox(id)
		if _, err := os.Stat(dir.String()); err != nil {
			continue // destroyed meanwhile
		}
		l := Leak{Kind: "sandbox", Name: id, Detail: "a directory without a journal", Bytes: allocated(dir.String())}
		if holdsData(dir) {
			r.keep(l, "it holds somebody's data; restart roost, which takes it up as a failed sandbox")
			continue
		}
		if _, err := os.Stat(dir.Journal()); err == nil {
			l.Detail = "a directory that was not there when roost started"
			r.keep(l, "restart roost to have it back, or delete "+dir.String())
			continue
		}
		r.add(l, func() error { return m.removeUnknown(id) })
	}
	return nil
}

func (m *Manager) knows(id string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.all[id] != nil
}

// removeUnknown removes a directory that is no sandbox's, unless it has become one's meanwhile.
func (m *Manager) removeUnknown(id string) error {
	m.mu.Lock()
	if m.all[id] != nil {
		m.mu.Unlock()
		return nil
	}
	empty, err := m.discard(m.cfg.Data.Sandbox(id).String(), id)
	m.mu.Unlock()
	empty()
	return err
}

// snapshotLeaks are unfinished snapshots that nobody is making, and published ones that cannot be
// read.
func (m *Manager) snapshotLeaks(r *leakReport) error {
	stages, err := filepath.Glob(m.cfg.Data.SnapshotStage("*"))
	if err != nil {
		return err
	}
	for _, path := range stages {
		id := strings.TrimPrefix(path, m.cfg.Data.SnapshotStage(""))
		if !m.inStaging(id) {
			r.directory("stage", path, ".snapshots/"+filepath.Base(path), "a snapshot that was never finished")
		}
	}
	ids, err := m.snapshotIDs()
	for _, id := range ids {
		path := m.cfg.Data.Snapshot(id)
		_, _, err := readCapture(path)
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrNotExist):
			r.directory("snapshot", path, id, "a snapshot without a manifest")
		default:
			l := Leak{Kind: "snapshot", Name: id, Detail: "its manifest is damaged: " + fault.Message(err), Bytes: allocated(path)}
			r.keep(l, "nothing can start from it; delete it: roost snapshot rm "+id)
		}
	}
	return err
}

// sandboxLeaks looks into the directories of sandboxes that nobody is at.
func (m *Manager) sandboxLeaks(ctx context.Context, r *leakReport) error {
	var errs []error
	for _, s := range m.list() {
		select {
		case s.gate <- struct{}{}:
			_, leave := s.begin(ctx)
			if m.has(s) {
				errs = append(errs, m.insideLeaks(s, r))
			}
			leave()
		default: // somebody is at it
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) insideLeaks(s *Sandbox, r *leakReport) error {
	j := s.journal()
	if here := s.gone() == nil; !here || !j.State.isSettled() || j.Pending != 0 {
		return nil
	}
	stages, err := filepath.Glob(filepath.Join(s.dir.Captures(), ".tmp-*"))
	for _, path := range stages {
		r.directory("stage", path, m.shortName(path), "a save that was never finished")
	}
	if err != nil || j.State != Paused {
		return err
	}
	keep, err := m.kept(s)
	if err != nil {
		l := Leak{Kind: "sandbox", Name: j.ID, Detail: fmt.Sprintf("its save %d is not whole: %s", j.Capture, fault.Message(err))}
		r.keep(l, "it cannot be resumed from that; see `roost resume --cold "+j.ID+"`, or remove it: roost rm "+j.ID)
		return nil
	}
	return m.unnamedLeaks(s, keep, r)
}

// unnamedLeaks are a paused sandbox's files that its capture does not stand on.
func (m *Manager) unnamedLeaks(s *Sandbox, keep func(string) bool, r *leakReport) error {
	var errs []error
	for _, dir := range []string{s.dir.Captures(), s.dir.Disk()} {
		errs = append(errs, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if e.IsDir() && strings.HasPrefix(e.Name(), ".tmp-") {
				return fs.SkipDir // a stage, told already
			}
			if e.IsDir() || keep(path) {
				return nil
			}
			r.directory("disk", path, m.shortName(path), "its sandbox's save does not stand on it")
			return nil
		}))
	}
	return errors.Join(errs...)
}

// shortName is a path below the directory of all sandboxes.
func (m *Manager) shortName(path string) string {
	return strings.TrimPrefix(path, m.cfg.Data.Sandboxes()+"/")
}
