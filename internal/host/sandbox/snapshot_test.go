package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

func (h *host) snapshot(name, snapshot string) Snapshot {
	h.t.Helper()
	snap, _, err := h.m.CreateSnapshot(h.t.Context(), Operation{ID: "snapshot-" + snapshot}, name, snapshot)
	require.NoError(h.t, err)
	return snap
}

// from makes a sandbox of a snapshot.
func (h *host) from(snapshot, name string) View {
	h.t.Helper()
	v, err := h.m.Create(h.t.Context(), Operation{}, CreateRequest{ID: name, Snapshot: snapshot, Template: "named"}, nil)
	require.NoError(h.t, err)
	require.Equal(h.t, Running, v.State)
	return v
}

func (h *host) fork(name string, ids ...string) ForkResult {
	h.t.Helper()
	req := ForkRequest{}
	for _, id := range ids {
		req.Forks = append(req.Forks, Fork{Operation: "fork-" + id, ID: id})
	}
	out, err := h.m.Fork(h.t.Context(), Operation{ID: "fork-" + ids[0]}, name, req)
	require.NoError(h.t, err)
	return out
}

func (h *host) remembers(name, text string) {
	h.t.Helper()
	got, err := h.get(name, "/notes")
	require.NoError(h.t, err)
	require.Equal(h.t, text, got)
}

// stages are what an unfinished snapshot or fork leaves.
func (h *host) stages() []string { return h.files("sandboxes/.snapshots/.tmp-*") }

func TestSnapshotOfARunningSandbox(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, b, snap := id("a"), id("b"), id("s")
		h.create(a)
		h.Runtime.Note(h.uid(a), "then")
		before := h.sandbox(a).View()
		s := h.snapshot(a, snap)
		require.Equal(t, a, s.SandboxID)
		require.Positive(t, s.Frozen)
		require.Positive(t, s.SizeBytes)
		require.NotEmpty(t, s.Phases)
		require.Equal(t, before.Generation, h.sandbox(a).View().Generation, "the sandbox is what it was")
		require.Equal(t, Running, h.state(a))
		h.answers(a)
		h.Runtime.Note(h.uid(a), "now")
		v := h.from(snap, b)
		require.Equal(t, "named", v.Template)
		require.Equal(t, before.Resources, v.Resources)
		h.remembers(b, "then")
		h.remembers(a, "now")
		mem := h.Runtime.Memory(h.uid(b))
		require.Equal(t, b, mem.Hostname)
		require.NotEqual(t, h.Runtime.Memory(h.uid(a)).MachineID, mem.MachineID)
		require.NotEqual(t, h.Runtime.Memory(h.uid(a)).Access, mem.Access)
		require.Empty(t, h.stages())
		// Whatever goes, the others stay.
		h.destroy(a)
		require.NoError(t, h.m.DeleteSnapshot(t.Context(), snap))
		require.NoError(t, h.m.DeleteSnapshot(t.Context(), snap), "deleted already")
		_, err := h.m.Snapshot(snap)
		require.Equal(t, fault.NotFound, fault.KindOf(err))
		h.remembers(b, "then")
		h.pause(b)
		h.resume(b)
		h.remembers(b, "then")
		h.destroy(b)
		h.empty()
	})
}

func TestSnapshotOfAPausedSandbox(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, snap := id("a"), id("s")
		h.create(a)
		h.Runtime.Note(h.uid(a), "then")
		h.pause(a)
		s := h.snapshot(a, snap)
		require.Zero(t, s.Frozen)
		require.Equal(t, Paused, h.state(a))
		require.Less(t, s.OwnBytes, s.SizeBytes, "its files are the sandbox's too")
		h.resume(a)
		h.Runtime.Note(h.uid(a), "now")
		h.pause(a)
		h.from(snap, id("b"))
		h.remembers(id("b"), "then")
		h.resume(a)
		h.remembers(a, "now")
	})
}

// A snapshot of a fork of a resumed snapshot works, and so does everything before and after it.
func TestAnyOrderAndDepth(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		last := id("a")
		h.create(last)
		for depth := range 12 {
			text := fmt.Sprint("depth ", depth)
			h.Runtime.Note(h.uid(last), text)
			next, snap := id(string(rune('b'+depth))), strings.Repeat(string(rune('b'+depth)), 19)+"0"
			switch depth % 4 {
			case 0:
				h.snapshot(last, snap)
				h.destroy(last)
				h.from(snap, next)
			case 1:
				require.Len(t, h.fork(last, next).Sandboxes, 1)
				h.destroy(last)
			case 2:
				h.pause(last)
				h.fork(last, next)
				require.Equal(t, Paused, h.state(last))
				h.destroy(last)
			default:
				h.pause(last)
				h.resume(last)
				h.snapshot(last, snap)
				h.pause(last)
				h.destroy(last)
				h.from(snap, next)
				require.NoError(t, h.m.DeleteSnapshot(t.Context(), snap))
			}
			h.remembers(next, text)
			last = next
		}
		h.restart()
		h.remembers(last, "depth 11")
	})
}

func TestForksAreAllOrNone(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "then")
		ids := []string{id("b"), id("c"), id("d")}
		out := h.fork(a, ids...)
		require.Len(t, out.Sandboxes, 3)
		require.Positive(t, out.Frozen)
		seen := map[string]bool{}
		for i, name := range ids {
			require.Equal(t, name, out.Sandboxes[i].ID)
			h.remembers(name, "then")
			seen[h.Runtime.Memory(h.uid(name)).MachineID] = true
		}
		require.Len(t, seen, 3)
		again := h.fork(a, ids...)
		require.Equal(t, out.Sandboxes[0].Generation, again.Sandboxes[0].Generation, "the same operation does nothing")
		// One that cannot be started takes the others with it.
		n := 0
		var mu sync.Mutex
		h.Runtime.On("restore", func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			if n++; n == 2 {
				return errors.New("no room")
			}
			return nil
		})
		req := ForkRequest{Forks: []Fork{{ID: id("e")}, {ID: id("f")}, {ID: id("g")}}}
		_, err := h.m.Fork(t.Context(), Operation{ID: "x"}, a, req)
		require.ErrorContains(t, err, "no room")
		h.Runtime.On("restore", nil)
		require.Len(t, h.m.List(), 4)
		require.Len(t, h.Slots(), 4)
		require.Equal(t, Running, h.state(a))
		h.answers(a)
		require.Empty(t, h.stages())
		_, err = h.m.Fork(t.Context(), Operation{ID: "x"}, a, req)
		require.NoError(t, err, "and may be tried again")
	})
}

func TestSnapshotsRefuseBadInput(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, snap := id("a"), id("s")
		h.create(a)
		h.create(id("b"))
		h.snapshot(a, snap)
		h.snapshot(a, snap) // the same again
		_, _, err := h.m.CreateSnapshot(t.Context(), Operation{}, id("b"), snap)
		require.Equal(t, fault.AlreadyExists, fault.KindOf(err))
		_, _, err = h.m.CreateSnapshot(t.Context(), Operation{}, a, "../x")
		require.Equal(t, fault.Invalid, fault.KindOf(err))
		require.Equal(t, fault.Invalid, fault.KindOf(h.m.DeleteSnapshot(t.Context(), "..")))
		_, _, err = h.m.CreateSnapshot(t.Context(), Operation{Generation: 0}, id("x"), id("t"))
		require.Equal(t, fault.NotFound, fault.KindOf(err))
		for what, change := range map[string]func(*CreateRequest){
			"runtime":   func(r *CreateRequest) { r.Runtime = "other" },
			"memory_mb": func(r *CreateRequest) { r.Resources.MemoryMB = 1024 },
			"vcpus":     func(r *CreateRequest) { r.Resources.VCPUs = 2 },
			"disk":      func(r *CreateRequest) { r.Resources.DiskSizeMB = 1024 },
		} {
			req := CreateRequest{ID: id("c"), Snapshot: snap}
			change(&req)
			_, err := h.m.Create(t.Context(), Operation{}, req, nil)
			require.Equal(t, fault.Invalid, fault.KindOf(err), what)
			require.ErrorContains(t, err, what)
		}
		_, err = h.m.Create(t.Context(), Operation{}, CreateRequest{ID: id("c"), Snapshot: id("z")}, nil)
		require.Equal(t, fault.NotFound, fault.KindOf(err))
		for _, req := range []ForkRequest{
			{}, {Forks: []Fork{{ID: "x"}}}, {Forks: []Fork{{ID: id("c")}, {ID: id("c")}}}, {Forks: make([]Fork, 65)},
		} {
			_, err = h.m.Fork(t.Context(), Operation{}, a, req)
			require.Equal(t, fault.Invalid, fault.KindOf(err))
		}
		_, err = h.m.Fork(t.Context(), Operation{}, a, ForkRequest{Forks: []Fork{{ID: id("b")}}})
		require.Equal(t, fault.AlreadyExists, fault.KindOf(err), "and the sandbox that has the id is left alone")
		h.answers(id("b"))
	})
}

// Each step of a snapshot fails once: the sandbox runs on, nothing is left, the next try succeeds.
func TestFailedSnapshots(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "then")
		full := &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
		for _, step := range []string{"guest.freeze", "freeze", "capture", "link"} {
			h.Runtime.Fail(step, 1, full)
			_, _, err := h.m.CreateSnapshot(t.Context(), Operation{}, a, id("s"))
			require.Error(t, err, step)
			if step != "guest.freeze" { // that one comes over the wire
				require.Equal(t, fault.ResourceExhausted, fault.KindOf(err), step)
				require.Contains(t, fault.HintOf(err), "still runs", step)
			}
			require.Equal(t, Running, h.state(a), step)
			require.Empty(t, h.stages(), step)
			h.remembers(a, "then")
		}
		// A thaw that fails once is tried again.
		h.Runtime.Fail("thaw", 1, errors.New("no"))
		h.snapshot(a, id("s"))
		h.remembers(a, "then")
		// One that cannot be thawed at all is failed, never a frozen zombie.
		h.Runtime.Fail("thaw", 9, errors.New("no"))
		_, _, err := h.m.CreateSnapshot(t.Context(), Operation{}, a, id("t"))
		require.Error(t, err)
		require.Equal(t, Failed, h.state(a))
		require.Empty(t, h.Slots())
		require.Empty(t, h.Runtime.Running())
		require.Empty(t, h.stages())
	})
}

// A client that leaves takes nothing back once the snapshot is there, and leaves nothing before.
func TestSnapshotWhoseClientLeaves(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		ctx, cancel := context.WithCancel(t.Context())
		h.Runtime.On("capture", func(context.Context) error { cancel(); return ctx.Err() })
		_, _, err := h.m.CreateSnapshot(ctx, Operation{}, a, id("s"))
		require.Error(t, err)
		require.Equal(t, Running, h.state(a))
		h.answers(a)
		require.Empty(t, h.stages())
		ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		h.Runtime.On("capture", nil)
		h.Runtime.On("thaw", func(context.Context) error { cancel(); return nil })
		_, _, _ = h.m.CreateSnapshot(ctx, Operation{}, a, id("s"))
		require.Equal(t, Running, h.state(a))
		h.answers(a)
		require.Empty(t, h.stages())
	})
}

// A destroy does not wait for the snapshot or the fork of what it destroys.
func TestDestroyedDuringAFork(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		at := make(chan struct{})
		var once sync.Once
		h.Runtime.On("restore", func(ctx context.Context) error {
			once.Do(func() { close(at) })
			<-ctx.Done()
			return ctx.Err()
		})
		failed := make(chan error)
		go func() {
			_, err := h.m.Fork(t.Context(), Operation{}, a, ForkRequest{Forks: []Fork{{ID: id("b")}, {ID: id("c")}}})
			failed <- err
		}()
		<-at
		h.destroy(a)
		require.ErrorContains(t, <-failed, "destroyed")
		h.empty()
		require.Empty(t, h.stages())
	})
}

// The builds that a snapshot needs stay while it is there.
func TestSnapshotKeepsItsBuild(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, snap := id("a"), id("s")
		h.create(a)
		s := h.snapshot(a, snap)
		h.destroy(a)
		rt := h.Runtime
		used, err := h.m.needed(rt, rt)
		require.NoError(t, err)
		c, _, err := readCapture(h.Data.Snapshot(snap))
		require.NoError(t, err)
		files, err := rt.Files(c)
		require.NoError(t, err)
		for _, f := range files {
			require.True(t, used[f], f)
		}
		require.Equal(t, runtime.Resources{VCPUs: 1, MemoryMB: 512, DiskSizeMB: 5120}, s.Resources)
	})
}

// Times are the snapshot's, not of the host's clock when it is read.
func TestSnapshotsAreListedOldestFirst(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.create(id("a"))
	for i, name := range []string{id("z"), id("y"), id("x")} {
		h.later.Store(int64(i) * int64(time.Hour))
		h.snapshot(id("a"), name)
	}
	require.NoError(t, os.MkdirAll(filepath.Join(h.Data.Snapshots(), id("w")), 0o700)) // one without a manifest
	all, err := h.m.Snapshots()
	require.NoError(t, err)
	require.Len(t, all, 3)
	require.Equal(t, id("z"), all[0].ID)
	require.Equal(t, id("x"), all[2].ID)
}

// A fork that the agent did not live to finish is taken back whole; a finished one stands whole.
func TestForksAreAllOrNoneAfterACrash(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.fork(a, id("b"), id("c"))
		h.fork(a, id("d"), id("e"))
		for _, name := range []string{id("b"), id("c"), id("d"), id("e")} {
			require.Nil(t, h.sandbox(name).journal().Fork, "it stands for itself")
		}
		// As a crash leaves them: one before the commit, one after it.
		h.noteFork(id("b"), a, "never committed")
		h.noteFork(id("c"), a, "never committed")
		h.noteFork(id("d"), a, "fork-"+id("d"))
		h.noteFork(id("e"), id("z"), "of a source that is gone")
		h.restart()
		require.Len(t, h.m.List(), 3)
		for _, name := range []string{a, id("d"), id("e")} {
			h.answers(name)
			require.Nil(t, h.sandbox(name).journal().Fork)
		}
		require.Len(t, h.Slots(), 3)
	})
}

func (h *host) noteFork(name, source, op string) {
	h.t.Helper()
	require.NoError(h.t, h.sandbox(name).update(true, func(j *journal) { j.Fork = &forkNote{Source: source, Operation: op} }))
}
