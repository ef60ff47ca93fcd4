package microvm

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/qcow2"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm"
)

// wreck is what a VM that died leaves: a record, and its first disk.
type wreck struct {
	r    *Runtime
	spec runtime.Spec
	rec  instanceRecord
}

func newWreck(t *testing.T) *wreck {
	t.Helper()
	w := &wreck{r: New(nil, qcow2.New())}
	w.spec = runtime.Spec{ID: "w", DiskDir: t.TempDir(), DiskIndex: 5}
	live, err := w.r.disk.Open(t.Context(), stackIn(t, w.r, []string{t.TempDir()}), disk.SizeUnit, w.spec.DiskDir, 5)
	require.NoError(t, err)
	w.rec = instanceRecord{Live: live, DiskIndex: 5, Handle: vmm.Handle{MemoryMB: 256}, VCPUs: 1}
	return w
}

func (w *wreck) salvage(t *testing.T) (captureRecord, error) {
	t.Helper()
	raw, err := json.Marshal(w.rec)
	require.NoError(t, err)
	dir := t.TempDir()
	record, err := w.r.Salvage(t.Context(), w.spec, raw, dir)
	if err != nil {
		return captureRecord{}, err
	}
	rec, err := parseCapture(runtime.Capture{Dir: dir, Record: record})
	require.NoError(t, err)
	require.True(t, rec.DiskOnly)
	require.Equal(t, []any{1, 256, w.rec.Live.SizeBytes}, []any{rec.VCPUs, rec.MemoryMB, rec.DiskBytes})
	return rec, nil
}

// layers are the layers that a salvage found above what the VM was started on; each is sealed.
func (w *wreck) layers(t *testing.T) []string {
	t.Helper()
	rec, err := w.salvage(t)
	require.NoError(t, err)
	require.Equal(t, w.rec.Live.Stack.Layers[0], rec.Disk.Layers[0])
	var out []string
	for _, l := range rec.Disk.Layers[1:] {
		sealed, err := isSealed(l.Path)
		require.NoError(t, err)
		require.True(t, sealed, l.Path)
		require.Equal(t, w.rec.Live.SizeBytes, l.SizeBytes)
		out = append(out, filepath.Base(l.Path))
	}
	return out
}

func TestSalvage(t *testing.T) {
	t.Parallel()
	w := newWreck(t)
	first := w.rec.Live
	base := filepath.Base
	for range 2 {
		require.Equal(t, []string{base(first.Path)}, w.layers(t))
	}
	// A capture sealed it, and the VM went on with the next one, or was about to.
	at := &top{live: first, index: 5}
	require.NoError(t, w.r.prepareNext(t.Context(), at, disk.Layer{Path: first.Path, SizeBytes: first.SizeBytes}))
	for range 2 {
		require.Equal(t, []string{base(first.Path), base(at.next.Path)}, w.layers(t))
	}
	// The file of a disk that was being made when the host went down.
	third := w.r.disk.LivePath(w.spec.DiskDir, 5+2*tops)
	for _, size := range []int{0, 100, 4 * disk.SizeUnit} {
		require.NoError(t, os.WriteFile(third, make([]byte, size), 0o600))
		require.Equal(t, []string{base(first.Path), base(at.next.Path)}, w.layers(t), size)
	}
	require.NoError(t, os.WriteFile(third, []byte("not a disk"), 0o600))
	_, err := w.salvage(t)
	require.Equal(t, fault.DataLoss, fault.KindOf(err), "the VM's last disk is damaged: an older one is not it (%v)", err)
}

// A disk that is refused will be refused for ever: that is damage, and says so.
func TestSalvageOfADamagedDisk(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(head []byte){
		"its magic":                         func(head []byte) { head[0] = 'x' },
		"QEMU found it corrupt":             func(head []byte) { head[79] |= 2 },
		"its size":                          func(head []byte) { head[24] ^= 1 },
		"a backing file":                    func(head []byte) { head[15] = 1 },
		"a feature that nobody has made it": func(head []byte) { head[72] = 1 },
	} {
		w := newWreck(t)
		f, err := os.OpenFile(w.rec.Live.Path, os.O_RDWR, 0)
		require.NoError(t, err)
		head := make([]byte, 104)
		_, err = f.ReadAt(head, 0)
		require.NoError(t, err)
		damage(head)
		_, err = f.WriteAt(head, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		_, err = w.salvage(t)
		require.Equal(t, fault.DataLoss, fault.KindOf(err), "%s: %v", name, err)
		require.Equal(t, diskHint, fault.HintOf(err), name)
		require.ErrorContains(t, err, w.rec.Live.Path)
	}
}

// The very first disk may be the one that never reached the host's disk.
func TestSalvageOfNothing(t *testing.T) {
	t.Parallel()
	w := newWreck(t)
	require.NoError(t, os.Truncate(w.rec.Live.Path, 0))
	require.Empty(t, w.layers(t))
	require.NoError(t, os.Remove(w.rec.Live.Path))
	_, err := w.salvage(t)
	require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
	_, err = w.r.Salvage(t.Context(), w.spec, []byte("{}"), t.TempDir())
	require.Equal(t, fault.Invalid, fault.KindOf(err), "%v", err)
}

// A VM that runs keeps its disk, whether its uid is known or its process alone.
func TestSalvageOfTheLiving(t *testing.T) {
	t.Parallel()
	w := newWreck(t)
	self, err := process.Open(os.Getpid(), 0)
	require.NoError(t, err)
	defer self.Release()
	w.rec.Handle.PID, w.rec.Handle.StartTime, w.rec.Handle.BootID = self.PID, self.StartTime, process.BootID()
	_, err = w.salvage(t)
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(err), "%v", err)
	sealed, err := isSealed(w.rec.Live.Path)
	require.NoError(t, err)
	require.False(t, sealed)
	w.rec.Handle.StartTime++ // the pid is another's by now
	require.Len(t, w.layers(t), 1)
	w.rec.Handle.StartTime--
	w.rec.Handle.BootID = "an earlier one"
	require.Len(t, w.layers(t), 1)
}
