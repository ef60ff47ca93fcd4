package reconcile

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

func (e *env) template(name string) *store.Template {
	e.Helper()
	row, err := e.Store.Template(e.Context(), name)
	require.NoError(e, err)
	return row
}

func (e *env) noTemplate(name string) {
	e.Helper()
	_, err := e.Store.Template(e.Context(), name)
	require.True(e, fault.Is(err, fault.NotFound), "%v", err)
}

func (e *env) snapshot(id, name string) *store.Template {
	e.Helper()
	_, err := e.Sandboxes.Snapshot(e.Context(), id, name)
	require.NoError(e, err)
	return e.template(name)
}

func (e *env) makeTemplate(name, from string) *store.Template {
	e.Helper()
	_, err := e.Sandboxes.CreateTemplate(e.Context(), sandbox.TemplateRequest{Name: name, From: from})
	require.NoError(e, err)
	return e.template(name)
}

// putTemplate overwrites a row, as a crash would have left it.
func (e *env) putTemplate(name string, f func(*store.Template)) {
	e.Helper()
	seen := e.template(name)
	next := seen.Copy()
	f(next)
	ok, err := e.Store.SwapTemplate(e.Context(), seen, next)
	require.NoError(e, err)
	require.True(e, ok)
}

func TestTheHostsTemplatesComeAndGo(t *testing.T) {
	e := newEnv(t)
	require.Equal(t, Result{}, e.round())
	require.True(t, e.template("base").BuiltByHost)
	e.agent.ForgetTemplate("other")
	e.agent.PutTemplate(&hostv1.Template{Name: "new", BuiltByHost: true})
	require.Equal(t, Result{}, e.round())
	e.noTemplate("other")
	e.template("new")
}

func TestSnapshotsFollowTheHost(t *testing.T) {
	e := newEnv(t)
	row := e.snapshot(e.create(), "s")
	require.Equal(t, Result{}, e.round())
	require.Equal(t, row.Version, e.template("s").Version, "no write without a change")

	snap := e.agent.Snapshot(row.ID)
	snap.OwnBytes = 77
	e.agent.PutSnapshot(snap)
	require.Equal(t, Result{}, e.round())
	require.EqualValues(t, 77, e.template("s").OwnBytes, "figures are kept")

	e.agent.ForgetSnapshot(row.ID)
	require.Equal(t, 1, e.round().Templates)
	lost := e.template("s")
	require.Equal(t, store.TemplateLost, lost.State)
	require.Equal(t, "the host no longer has it", lost.Reason)
	require.Zero(t, lost.OwnBytes)
	require.Equal(t, Result{}, e.round())
	e.agent.PutSnapshot(snap) // the agent had not read its directory
	require.Equal(t, 1, e.round().Templates)
	require.Equal(t, store.TemplateReady, e.template("s").State)
	require.Empty(t, e.template("s").Reason)
}

func TestAShortListOfSnapshotsIsCheckedByName(t *testing.T) {
	e := newEnv(t)
	row := e.snapshot(e.create(), "s")
	snap := e.agent.Snapshot(row.ID)
	e.agent.ForgetSnapshot(row.ID)
	e.agent.Before(func(_ context.Context, m, _ string) error {
		if m == "GetSnapshot" {
			e.agent.PutSnapshot(snap)
		}
		return nil
	})
	require.Equal(t, Result{}, e.round())
	require.Equal(t, store.TemplateReady, e.template("s").State)
}

func TestMadeTemplatesFollowTheHost(t *testing.T) {
	e := newEnv(t)
	row := e.makeTemplate("m", e.create())
	require.Equal(t, Result{}, e.round())
	at := e.agent.Template("m")
	e.agent.ForgetTemplate("m")
	require.Equal(t, 1, e.round().Templates)
	require.Equal(t, store.TemplateLost, e.template("m").State)
	e.agent.PutTemplate(at)
	require.Equal(t, 1, e.round().Templates)
	require.Equal(t, store.TemplateReady, e.template("m").State)

	e.agent.ForgetSnapshot(row.SnapshotID)
	require.Equal(t, Result{}, e.round())
	cold := e.template("m")
	require.Equal(t, store.TemplateReady, cold.State, "its files are there")
	require.Empty(t, cold.SnapshotID)
	require.True(t, cold.DiskOnly)
	require.Contains(t, cold.Reason, "boot")
	require.Zero(t, cold.MemoryMB)
	require.Equal(t, Result{}, e.round())
}

// The host's list leaves out what it cannot read; the question by name says why.
func TestDamagedMemory(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	snap, made := e.snapshot(id, "s"), e.makeTemplate("m", id)
	damaged := map[string]bool{snap.SnapshotID: true, made.SnapshotID: true}
	kept := e.agent.Snapshot(snap.SnapshotID)
	e.agent.ForgetSnapshot(snap.SnapshotID)
	e.agent.ForgetSnapshot(made.SnapshotID)
	var dropped []string
	e.agent.Before(func(_ context.Context, m, id string) error {
		switch {
		case m == "GetSnapshot" && damaged[id]:
			return connect.NewError(connect.CodeDataLoss, errors.New("manifest: its checksum is wrong"))
		case m == "DeleteSnapshot":
			dropped = append(dropped, id)
		}
		return nil
	})
	require.Equal(t, 1, e.round().Templates)
	require.Equal(t, store.TemplateLost, e.template("s").State)
	require.Equal(t, "it is damaged: manifest: its checksum is wrong", e.template("s").Reason)
	require.Equal(t, store.TemplateReady, e.template("m").State, "its files are there")
	require.Empty(t, e.template("m").SnapshotID)
	require.Equal(t, []string{made.SnapshotID}, dropped, "what no row knows any more goes; the snapshot is its owner's to delete")
	require.Equal(t, Result{}, e.round())
	e.agent.PutSnapshot(kept)
	require.Equal(t, 1, e.round().Templates)
	require.Equal(t, store.TemplateReady, e.template("s").State)
}

// Every point at which a control plane may die while it makes a snapshot or a template: the
// row is claimed for a while or not, and the host has it or not.
func TestInterruptedMakers(t *testing.T) {
	for name, make := range map[string]func(e *env, id string) *store.Template{
		"snapshot": func(e *env, id string) *store.Template { return e.snapshot(id, "x") },
		"template": func(e *env, id string) *store.Template { return e.makeTemplate("x", id) },
	} {
		for _, claimed := range []bool{true, false} {
			for _, there := range []bool{true, false} {
				t.Run(name, func(t *testing.T) {
					e := newEnv(t)
					id := e.create()
					row := make(e, id)
					deadline := store.Instant(1)
					if claimed {
						deadline = store.At(e.now().Add(time.Minute))
					}
					e.putTemplate("x", func(r *store.Template) {
						r.State, r.ClaimID, r.ClaimDeadline, r.OwnBytes = store.TemplateCreating, "op", deadline, 0
					})
					e.put(id, func(r *store.Sandbox) { r.ClaimID, r.ClaimDeadline = "op", deadline })
					if !there {
						e.agent.ForgetSnapshot(row.SnapshotID)
						e.agent.ForgetTemplate("x")
					}
					if claimed {
						require.Equal(t, Result{}, e.round(), "left alone")
						require.Equal(t, store.TemplateCreating, e.template("x").State)
						require.NotEmpty(t, e.row(id).ClaimID)
						e.advance(time.Minute + time.Second)
					}
					r := e.round()
					require.Equal(t, 1, r.Templates)
					require.Equal(t, 1, r.Healed, "the source's mark goes")
					require.Equal(t, store.Running, e.row(id).State)
					require.Empty(t, e.row(id).ClaimID)
					if there {
						require.Equal(t, store.TemplateReady, e.template("x").State)
					} else {
						e.noTemplate("x")
					}
					require.Equal(t, Result{}, e.round())
				})
			}
		}
	}
}

func TestAHostThatIsStillAtItIsLeftToIt(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	row := e.snapshot(id, "x")
	snap := e.agent.Snapshot(row.ID)
	e.agent.ForgetSnapshot(row.ID)
	e.putTemplate("x", func(r *store.Template) { r.State, r.ClaimID, r.ClaimDeadline = store.TemplateCreating, "op", 1 })
	e.put(id, func(r *store.Sandbox) { r.ClaimID, r.ClaimDeadline = "op", 1 })
	sb := e.agent.Sandbox(id)
	sb.State = hostv1.SandboxState_SANDBOX_STATE_SNAPSHOTTING
	e.agent.Put(sb)
	e.round()
	require.Equal(t, store.TemplateCreating, e.template("x").State)
	require.NotEmpty(t, e.row(id).ClaimID, "the mark stands")
	require.Equal(t, store.Running, e.row(id).State)
	e.agent.PutSnapshot(snap)
	sb.State = hostv1.SandboxState_SANDBOX_STATE_RUNNING
	e.agent.Put(sb)
	e.round()
	require.Equal(t, store.TemplateReady, e.template("x").State)
	require.Empty(t, e.row(id).ClaimID)
}

// A control plane that died during a fork: the host has all of them or none.
func TestInterruptedForks(t *testing.T) {
	for name, there := range map[string]bool{"there": true, "not there": false} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			id := e.create()
			made, err := e.Sandboxes.Fork(t.Context(), id, sandbox.ForkRequest{Count: 3})
			require.NoError(t, err)
			e.put(id, func(r *store.Sandbox) { r.ClaimID, r.ClaimDeadline = "op", 1 })
			for _, row := range made.Sandboxes {
				e.put(row.ID, func(r *store.Sandbox) {
					r.State, r.ClaimID, r.ClaimDeadline = store.Creating, "op", store.At(e.now().Add(time.Minute))
				})
				if !there {
					e.agent.Forget(row.ID)
				}
			}
			require.Equal(t, 1, e.round().Healed, "the source alone")
			e.advance(2 * time.Minute)
			r := e.round()
			want := store.Running
			if there {
				require.Equal(t, 3, r.Healed)
			} else {
				require.Equal(t, 3, r.Lost)
				want = store.Deleted
			}
			for _, row := range made.Sandboxes {
				require.Equal(t, want, e.row(row.ID).State)
			}
		})
	}
}

func TestDeletesOfTemplatesAreRepeated(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	snap, made := e.snapshot(id, "s"), e.makeTemplate("m", id)
	for _, name := range []string{"s", "m"} {
		e.putTemplate(name, func(r *store.Template) { r.State, r.ClaimID, r.ClaimDeadline = store.TemplateDeleting, "op", 1 })
	}
	e.agent.Before(func(_ context.Context, m, _ string) error {
		if m == "DeleteSnapshot" {
			return connect.NewError(connect.CodeInternal, errors.New("busy"))
		}
		return nil
	})
	_, err := e.runOnce(t.Context())
	require.ErrorContains(t, err, "busy")
	require.Equal(t, "delete failed: busy", e.template("s").Reason)
	e.agent.Before(nil)
	require.Equal(t, 2, e.round().Templates)
	e.noTemplate("s")
	e.noTemplate("m")
	require.Nil(t, e.agent.Snapshot(snap.ID))
	require.Nil(t, e.agent.Snapshot(made.SnapshotID))
	require.Nil(t, e.agent.Template("m"))
}

func TestStraysAreToldOnceAndLeftAlone(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	e.snapshot(id, "s")
	e.makeTemplate("m", id)
	require.Empty(t, e.round().Strays, "hidden memory is no stray")
	e.agent.PutSnapshot(&hostv1.Snapshot{Id: "stray"})
	e.agent.PutTemplate(&hostv1.Template{Name: "nobodys"})
	r := e.round()
	require.Equal(t, []string{"snapshot stray", "template nobodys"}, r.Strays)
	e.tell(r, nil)
	e.tell(e.round(), nil)
	require.Equal(t, 1, bytes.Count([]byte(e.log.String()), []byte("snapshot stray")))
	require.NotNil(t, e.agent.Snapshot("stray"))
	require.NotNil(t, e.agent.Template("nobodys"))
}

// The host was still at work when its caller was given up: what comes after that goes.
func TestAFinishAfterTheErase(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	snap, made := e.snapshot(id, "s"), e.makeTemplate("m", id)
	late := []*hostv1.Snapshot{e.agent.Snapshot(snap.SnapshotID), e.agent.Snapshot(made.SnapshotID)}
	template := e.agent.Template("m")
	for _, name := range []string{"s", "m"} {
		e.putTemplate(name, func(r *store.Template) { r.State, r.ClaimID, r.ClaimDeadline = store.TemplateCreating, "op", 1 })
	}
	e.agent.ForgetSnapshot(snap.SnapshotID)
	e.agent.ForgetTemplate("m")
	require.Equal(t, 2, e.round().Templates)
	e.noTemplate("s")
	e.noTemplate("m")
	for _, s := range late {
		e.agent.PutSnapshot(s)
	}
	e.agent.PutTemplate(template)
	r := e.round()
	require.Equal(t, 3, r.Leftovers)
	require.Empty(t, r.Strays)
	require.Nil(t, e.agent.Snapshot(snap.SnapshotID))
	require.Nil(t, e.agent.Snapshot(made.SnapshotID))
	require.Nil(t, e.agent.Template("m"))
	e.advance(2 * time.Hour)
	e.agent.PutTemplate(template)
	require.Equal(t, []string{"template m"}, e.round().Strays, "after so long it is somebody else's")
}

func TestSandboxesOfAHostThatWentDown(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	e.agent.Change(id, func(sb *hostv1.Sandbox) {
		sb.State, sb.Reason = hostv1.SandboxState_SANDBOX_STATE_LOST, "the host went down"
	})
	require.Equal(t, 1, e.round().Healed)
	require.Equal(t, store.Lost, e.row(id).State)
	e.agent.Forget(id)
	require.Equal(t, 1, e.round().Lost)
	require.Equal(t, store.Failed, e.row(id).State)
}

// Two control planes reconcile the same rows.
func TestTwoLoops(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	row := e.snapshot(id, "x")
	second := New(e.Config)
	for _, there := range []bool{true, false} {
		if !there {
			e.agent.ForgetSnapshot(row.ID)
		}
		e.putTemplate("x", func(r *store.Template) { r.State, r.ClaimID, r.ClaimDeadline = store.TemplateCreating, "op", 1 })
		done := make(chan error, 2)
		for _, l := range []*Loop{e.Loop, second} {
			go func() { _, err := l.runOnce(t.Context()); done <- err }()
		}
		for range 2 {
			if err := <-done; err != nil {
				require.True(t, fault.Is(err, fault.Aborted), "one of two is late: %v", err)
			}
		}
		if there {
			require.Equal(t, store.TemplateReady, e.template("x").State)
		} else {
			e.noTemplate("x")
		}
	}
}
