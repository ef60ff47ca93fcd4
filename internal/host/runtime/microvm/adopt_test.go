package microvm

import (
	"context"
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk/qcow2"
	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/memory/uffd"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm"
)

// adoptingDriver notes what there is when it is asked for a VM, and gives none.
type adoptingDriver struct {
	ownDriver
	asked func()
}

func (d adoptingDriver) Adopt(context.Context, vmm.Handle) (vmm.VM, error) {
	d.asked()
	return nil, fault.New(fault.Unavailable, "adopt", "vm", "it does not answer")
}

// sleeper is a process of a uid that stands for a VMM or a page server.
func sleeper(t *testing.T, uid int) *process.Process {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	require.NoError(t, err)
	defer null.Close()
	p, err := process.Start(process.Spec{
		Path: "/bin/sleep", Args: []string{"1000"}, Files: []*os.File{null, null, null}, UID: uid, GID: uid, MaxFiles: 64,
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Kill(context.Background()) })
	return p
}

// runs asks the kernel: who started a process may hear of its end later.
func runs(t *testing.T, p *process.Process) bool {
	t.Helper()
	again, err := process.Open(p.PID, p.StartTime)
	if fault.Is(err, fault.NotFound) {
		return false
	}
	require.NoError(t, err)
	again.Release()
	return true
}

// A VMM that waits for a page answers nobody, so it has its page server, or is ended, before it is
// asked. A server that nobody noted is not the one.
func TestAVMHasItsPagerBeforeItIsAsked(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root: a page server runs under another uid")
	}
	const uid = 1_900_000_131
	server, noted, stray := sleeper(t, uid), sleeper(t, uid), sleeper(t, uid)
	handle := func(p *process.Process) *uffd.Handle {
		return &uffd.Handle{PID: p.PID, StartTime: p.StartTime, BootID: process.BootID(), Dir: t.TempDir()}
	}
	adopt := func(pager *uffd.Handle, asked func()) error {
		record, err := json.Marshal(instanceRecord{
			Origin: &origin{Map: "none"}, Pager: pager,
			Handle: vmm.Handle{PID: server.PID, StartTime: server.StartTime, BootID: process.BootID(), MemoryMB: ownMB},
		})
		require.NoError(t, err)
		rt := New(adoptingDriver{asked: asked}, qcow2.New())
		_, err = rt.Adopt(t.Context(), runtime.Spec{ID: "x", UID: uid, RunDir: t.TempDir()}, record)
		return err
	}
	calls := 0
	err := adopt(handle(noted), func() {
		calls++
		require.False(t, runs(t, stray))
	})
	require.Equal(t, fault.Unavailable, fault.KindOf(err), "%v", err)
	require.True(t, runs(t, noted) && runs(t, server))

	err = adopt(handle(stray), func() { // which is dead, and nothing is there to start another with
		calls++
		require.False(t, runs(t, server))
	})
	require.Equal(t, fault.NotFound, fault.KindOf(err), "%v", err)
	require.False(t, runs(t, noted))
	require.Equal(t, 2, calls)
}

// Two layers of nothing have one name, and are one.
func TestEmptyLayersAreLinkedOnce(t *testing.T) {
	t.Parallel()
	base := ownTemplate(t)
	in, _ := ownInstance(written(t, map[int]byte{2: 20}), base)
	_, first, c := save(t, in, nil)
	for range 2 {
		m := &ram{base: base.base, id: base.id, origin: first}
		in, _ = ownInstance(written(t, nil), m)
		_, first, c = save(t, in, &c)
	}
	require.Equal(t, int64(0), func() int64 { st, _ := os.Stat(first.Layers[2]); return st.Size() }())
	in, _ = ownInstance(written(t, map[int]byte{3: 30}), &ram{base: base.base, id: base.id, origin: first})
	rec, last, _ := save(t, in, nil)
	require.Len(t, rec.Layers, 4)
	got, _ := pageOf(t, last, 2)
	require.Equal(t, byte(20), got)
	require.NoError(t, last.verify(t.Context()))
}

// A template's memory that was made anew is not what an adopted VM stands on: what is saved of it says
// so, and never meets the new one.
func TestAnAdoptedVMStandsOnWhatItWasStartedFrom(t *testing.T) {
	t.Parallel()
	base := ownTemplate(t)
	in, _ := ownInstance(written(t, map[int]byte{2: 20}), base)
	record, err := in.Record()
	require.NoError(t, err)
	anew, err := os.Open(written(t, map[int]byte{1: 99}))
	require.NoError(t, err)
	defer anew.Close()
	_, err = memory.SaveFrom(t.Context(), anew, base.base)
	require.NoError(t, err)

	rec, err := parseInstance(record)
	require.NoError(t, err)
	m, err := takeBackOwn(rec, nil)
	require.NoError(t, err)
	in, _ = ownInstance(written(t, map[int]byte{2: 20}), m)
	saved, _, _ := save(t, in, nil)
	_, err = ownMemory(t.Context(), runtime.Spec{RunDir: t.TempDir()}, saved)
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(err), "%v", err)
}
