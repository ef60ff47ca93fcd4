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
	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm"
)

func sample(dir string) captureRecord {
	return captureRecord{
		VCPUs: 2, MemoryMB: 256, State: filepath.Join(dir, paths.DeviceState), StateSum: "s",
		MemoryBase: "/warm/memory", MemoryMap: filepath.Join(dir, paths.MemoryMap),
		Layers: []string{"/x/captures/1/memory.layer", filepath.Join(dir, "memory.layer")},
		Disk: disk.Stack{
			Base:   disk.Base{Path: "/images/disk", SizeBytes: 1 << 30},
			Layers: []disk.Layer{{Path: "/warm/disk-0", SizeBytes: 5 << 30}, {Path: "/x/disk/disk-3", SizeBytes: 5 << 30}},
		},
		DiskBytes: 5 << 30,
	}
}

// A capture is renamed when it is published: what lies in it moves along, the rest stays.
func TestRecordMovesWithItsDirectory(t *testing.T) {
	t.Parallel()
	const stage, final = "/x/captures/.tmp-2", "/x/captures/2"
	rec := sample(stage)
	raw, err := json.Marshal(rec.relativeTo(stage))
	require.NoError(t, err)
	require.NotContains(t, string(raw), ".tmp-2")
	require.Equal(t, sample(stage), rec, "the record in hand is as it was")
	got, err := parseCapture(runtime.Capture{Dir: final, Record: raw})
	require.NoError(t, err)
	require.Equal(t, sample(final), got)
	require.ElementsMatch(t, []string{
		final + "/device.state", "/warm/memory", final + "/memory.map", "/x/captures/1/memory.layer",
		final + "/memory.layer", "/images/disk", "/warm/disk-0", "/x/disk/disk-3",
	}, got.files())
	files, err := (&Runtime{}).Files(runtime.Capture{Dir: final, Record: raw})
	require.NoError(t, err)
	require.Equal(t, got.files(), files)
	_, err = parseCapture(runtime.Capture{Dir: final, Record: []byte("{")})
	require.ErrorContains(t, err, "read capture record of "+final)
}

func TestCheckIdentity(t *testing.T) {
	t.Parallel()
	have := vmm.Identity{Build: "b", Version: "7.2", Machine: "microvm", CPU: "max", Cmdline: "tsc=1"}
	require.NoError(t, checkIdentity(have, have))
	for field, change := range map[string]func(*vmm.Identity){
		"machine type": func(i *vmm.Identity) { i.Machine = "q35" },
		"VMM build":    func(i *vmm.Identity) { i.Build = "c" },
		"CPU model":    func(i *vmm.Identity) { i.CPU = "host" },
	} {
		need := have
		change(&need)
		err := checkIdentity(have, need)
		require.Equal(t, fault.FailedPrecondition, fault.KindOf(err), field)
		require.ErrorContains(t, err, field)
		require.NotEmpty(t, fault.HintOf(err), field)
	}
}

// Damaged device state is refused before a guest runs.
func TestDeviceStateIsVerified(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "device.state")
	content := []byte("state")
	require.NoError(t, os.WriteFile(path, content, 0o600))
	f, err := openState(path, stateSum(content))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	for _, bad := range [][]byte{[]byte("statf"), []byte("stat"), nil} {
		require.NoError(t, os.WriteFile(path, bad, 0o600))
		_, err = openState(path, stateSum(content))
		require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
		require.ErrorContains(t, err, "checksum is")
		require.Contains(t, fault.HintOf(err), "roost resume --cold ID")
	}
	require.NoError(t, os.Remove(path))
	_, err = openState(path, "")
	require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "missing")
}

// A capture whose template's memory is gone is damaged; it is not the sandbox that is not found.
func TestMissingTemplateMemory(t *testing.T) {
	t.Parallel()
	_, err := New(nil, qcow2.New()).baseMemory(t.Context(), filepath.Join(t.TempDir(), "memory"), 256)
	require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
	require.Contains(t, fault.HintOf(err), "roost resume --cold ID")
}

// A damaged earlier capture does not keep a sandbox from a whole new one.
func TestParentThatCannotBeRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rec := sample(dir)
	capture := func() *runtime.Capture {
		raw, err := json.Marshal(rec.relativeTo(dir))
		require.NoError(t, err)
		return &runtime.Capture{Dir: dir, Record: raw}
	}
	saved, layers := parentMap(capture())
	require.Nil(t, saved, "its map is missing")
	require.Nil(t, layers)
	require.NoError(t, os.WriteFile(rec.MemoryMap, []byte("damaged"), 0o600))
	saved, _ = parentMap(capture())
	require.Nil(t, saved)
	saved, _ = parentMap(&runtime.Capture{Dir: dir, Record: []byte("{")})
	require.Nil(t, saved)
	saved, layers = parentMap(nil)
	require.Nil(t, saved)
	require.Nil(t, layers)
	rec.Layers = make([]string, memory.MaxLayers)
	saved, _ = parentMap(capture())
	require.Nil(t, saved, "too many layers: start afresh")
}
