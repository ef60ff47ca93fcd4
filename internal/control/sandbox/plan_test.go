package sandbox_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

// started is what the host was asked for.
func (e *env) started(s sandbox.Spec) *hostv1.CreateSandboxRequest {
	e.Helper()
	row, err := e.Create(e.Context(), sandbox.Request{Spec: s})
	require.NoError(e, err)
	req := e.agent.Request(row.ID)
	require.Equal(e, req.Template, row.Template)
	tmpl, err := e.store.Template(e.Context(), row.Template)
	require.NoError(e, err)
	require.Equal(e, tmpl.ID, row.TemplateID)
	require.EqualValues(e, req.Resources.MemoryMb, row.MemoryMB)
	return req
}

func sizes(r *hostv1.Resources) [3]uint32 { return [3]uint32{r.Vcpus, r.MemoryMb, r.DiskSizeMb} }

func TestDefaults(t *testing.T) {
	e := newEnv(t)
	req := e.started(sandbox.Spec{})
	require.Equal(t, "base", req.Template)
	require.Empty(t, req.SnapshotId)
	require.Equal(t, [3]uint32{1, 512, 5120}, sizes(req.Resources))
	require.EqualValues(t, 300, req.IdleTimeout.AsDuration().Seconds())
	require.Empty(t, req.Runtime)
	e.agent.PutTemplate(&hostv1.Template{Name: "huge", DiskBytes: 6000 << 20, BuiltByHost: true})
	require.EqualValues(t, 6000, e.started(sandbox.Spec{Template: "huge"}).Resources.DiskSizeMb, "never less than it needs")
}

func TestCreateFromASnapshot(t *testing.T) {
	e := newEnv(t)
	s := sandbox.Spec{VCPUs: 2, MemoryMB: 1024, DiskSizeMB: 6000}
	source, err := e.Create(t.Context(), sandbox.Request{Spec: s})
	require.NoError(t, err)
	snap := e.snapshot(source.ID, "s")
	for name, spec := range map[string]sandbox.Spec{
		"by name":      {Template: "s"},
		"by id":        {Template: snap.ID},
		"all the same": {Template: "s", VCPUs: 2, MemoryMB: 1024, DiskSizeMB: 6000, Runtime: "microvm"},
		"cold":         {Template: "s", Cold: true},
	} {
		req := e.started(spec)
		require.Equal(t, "s", req.Template, name)
		require.Equal(t, snap.ID, req.SnapshotId, name)
		require.Equal(t, [3]uint32{2, 1024, 6000}, sizes(req.Resources), name)
		require.Equal(t, "microvm", req.Runtime, name)
		require.Equal(t, spec.Cold, req.Cold, name)
	}
	calls := e.agent.Calls("CreateSandbox")
	for name, c := range map[string]struct {
		spec sandbox.Spec
		text string
	}{
		"vcpus":   {sandbox.Spec{VCPUs: 1}, "vcpus is 1: snapshot s has 2"},
		"memory":  {sandbox.Spec{MemoryMB: 512}, "memory_mb is 512: snapshot s has 1024"},
		"runtime": {sandbox.Spec{Runtime: "gvisor"}, `runtime is "gvisor": snapshot s is of microvm`},
		"disk":    {sandbox.Spec{DiskSizeMB: 5999}, "disk_size_mb is 5999: snapshot s has 6000"},
	} {
		c.spec.Template = "s"
		_, err := e.Create(t.Context(), sandbox.Request{Spec: c.spec})
		require.True(t, fault.Is(err, fault.Invalid), "%s: %v", name, err)
		require.ErrorContains(t, err, c.text)
	}
	require.Equal(t, calls, e.agent.Calls("CreateSandbox"), "the host is not asked")
	_, err = e.Create(t.Context(), sandbox.Request{Spec: sandbox.Spec{Template: "s", DiskSizeMB: 7000}})
	require.ErrorContains(t, err, "this runtime cannot grow a disk", "that is for the host to say")
	require.True(t, fault.Is(err, fault.Invalid))
}

func TestCreateFromATemplateWithMemory(t *testing.T) {
	e := newEnv(t)
	source, err := e.Create(t.Context(), sandbox.Request{Spec: sandbox.Spec{VCPUs: 2, MemoryMB: 1024, DiskSizeMB: 6000}})
	require.NoError(t, err)
	made := e.template("mine", source.ID, false)
	for name, c := range map[string]struct {
		spec  sandbox.Spec
		warm  bool
		sizes [3]uint32
	}{
		"nothing given": {sandbox.Spec{}, true, [3]uint32{2, 1024, 6000}},
		"the same":      {sandbox.Spec{VCPUs: 2, MemoryMB: 1024, DiskSizeMB: 6000, Runtime: "microvm"}, true, [3]uint32{2, 1024, 6000}},
		"cold":          {sandbox.Spec{Cold: true}, false, [3]uint32{2, 1024, 6000}},
		"memory":        {sandbox.Spec{MemoryMB: 512}, false, [3]uint32{2, 512, 6000}},
		"vcpus":         {sandbox.Spec{VCPUs: 1}, false, [3]uint32{1, 1024, 6000}},
		"larger disk":   {sandbox.Spec{DiskSizeMB: 9000}, false, [3]uint32{2, 1024, 9000}},
		"smaller disk":  {sandbox.Spec{DiskSizeMB: 200}, false, [3]uint32{2, 1024, 200}},
		"runtime":       {sandbox.Spec{Runtime: "gvisor"}, false, [3]uint32{2, 1024, 6000}},
	} {
		c.spec.Template = "mine"
		req := e.started(c.spec)
		require.Equal(t, c.sizes, sizes(req.Resources), name)
		if c.warm {
			require.Equal(t, made.SnapshotID, req.SnapshotId, name)
			require.Equal(t, "microvm", req.Runtime, name)
		} else {
			require.Empty(t, req.SnapshotId, name)
			require.Equal(t, c.spec.Runtime, req.Runtime, name)
		}
	}
	_, err = e.Create(t.Context(), sandbox.Request{Spec: sandbox.Spec{Template: "mine", DiskSizeMB: 199}})
	require.ErrorContains(t, err, "needs at least 200")
	bare := e.template("bare", source.ID, true)
	require.Empty(t, bare.SnapshotID)
	req := e.started(sandbox.Spec{Template: "bare"})
	require.Empty(t, req.SnapshotId)
	require.Equal(t, [3]uint32{1, 512, 5120}, sizes(req.Resources))
}

func TestUnusableTemplates(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.snapshot(id, "s")
	row := e.made()[0]
	for state, kind := range map[store.TemplateState]fault.Kind{
		store.TemplateCreating: fault.FailedPrecondition, store.TemplateDeleting: fault.NotFound, store.TemplateLost: fault.FailedPrecondition,
	} {
		next := row.Copy()
		next.State, next.Reason = state, "because"
		ok, err := e.store.SwapTemplate(t.Context(), row, next)
		require.NoError(t, err)
		require.True(t, ok)
		row = next
		_, err = e.Create(t.Context(), sandbox.Request{Spec: sandbox.Spec{Template: "s"}})
		require.True(t, fault.Is(err, kind), "%s: %v", state, err)
		require.NotEmpty(t, fault.HintOf(err))
	}
	require.Equal(t, 1, e.agent.Calls("CreateSandbox"))
}
