//go:build failpoints

package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/qcow2"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm/qemu"
	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

// An agent that dies within the thaw of a snapshot, at any step of the VM's change to its next
// disk, leaves a sandbox whose writes go where they belong, and of which snapshots can be taken.
// Not parallel: the environment is shared.
func TestDiesInSwitch(t *testing.T) {
	s := startSnapped(t)
	for _, point := range []string{
		"qemu.switch.half", "qemu.switch.given", "qemu.switch.file", "qemu.switch.node", "qemu.switch.done",
	} {
		s.dieAt(point)
		for range 2 {
			s.write(point)
			s.freeze()
			c := s.capture()
			s.thaw()
			s.holdsAll(c)
		}
		s.write(point)
	}
	s.holdsAll(s.restored())
}

// snapped is a sandbox of whose guest snapshots are taken.
type snapped struct {
	*testing.T
	line vmmtest.Line
	spec runtime.Spec
	rt   *Runtime
	in   runtime.Instance
	// written are what the guest wrote, a block each.
	written  []string
	captures int
}

func startSnapped(t *testing.T) *snapped {
	const uid, mb = 1_900_000_124, 1
	fixtures, dir := vmmtest.Build(t), t.TempDir()
	s := &snapped{T: t, line: vmmtest.NewLine(t), rt: newMicroVM(t)}
	base := filepath.Join(dir, "base")
	require.NoError(t, os.WriteFile(base, make([]byte, mb<<20), 0o400))
	s.spec = runtime.Spec{
		ID: "snapped", UID: uid, RunDir: filepath.Join(dir, "run"), DiskDir: filepath.Join(dir, "disk"), Initrd: fixtures.Initrd,
		Resources: runtime.Resources{VCPUs: 1, MemoryMB: 256, DiskSizeMB: mb},
		Template:  runtime.Template{Kernel: fixtures.Kernel, Disk: base, DiskBytes: mb << 20},
		Port:      runtime.Port{Tap: s.line.Tap(), MAC: vmmtest.GuestMAC},
	}
	require.NoError(t, os.Mkdir(s.spec.RunDir, 0o700))
	require.NoError(t, os.Mkdir(s.spec.DiskDir, 0o700))
	t.Cleanup(func() { require.NoError(t, s.rt.Discard(context.Background(), s.spec)) })
	var err error
	s.in, err = s.rt.Boot(t.Context(), s.spec, runtime.BootOptions{})
	require.NoError(t, err)
	return s
}

func newMicroVM(t testing.TB) *Runtime {
	t.Helper()
	driver, err := qemu.New(t.Context(), qemu.Options{Accel: qemu.AccelTCG})
	require.NoError(t, err)
	return New(driver, qcow2.New())
}

func (s *snapped) freeze() { require.NoError(s, s.in.Freeze(s.Context())) }
func (s *snapped) thaw()   { require.NoError(s, s.in.Thaw(s.Context())) }

// write lets the guest write one block more.
func (s *snapped) write(text string) {
	s.written = append(s.written, text)
	require.Equal(s, "ok", s.line.Ask(s, fmt.Sprintf("write %d %s", len(s.written), text)))
}

func (s *snapped) captureDir() string {
	s.captures++
	dir := filepath.Join(s.spec.DiskDir, fmt.Sprintf("../capture-%d", s.captures))
	require.NoError(s, os.Mkdir(dir, 0o700))
	return dir
}

func (s *snapped) capture() runtime.Capture {
	s.Helper()
	dir := s.captureDir()
	raw, _, err := s.in.Capture(s.Context(), dir, runtime.CaptureOptions{})
	require.NoError(s, err)
	return runtime.Capture{Dir: dir, Record: raw}
}

// holdsAll checks the disk of a capture: it is undamaged and has what the guest wrote until then.
func (s *snapped) holdsAll(c runtime.Capture) {
	s.Helper()
	rec, err := parseCapture(c)
	require.NoError(s, err)
	s.stackHolds(rec.Disk)
}

func (s *snapped) stackHolds(stack disk.Stack) {
	s.Helper()
	for _, l := range stack.Layers {
		require.NotEmpty(s, l.Sum)
	}
	flat := filepath.Join(s.TempDir(), "flat")
	_, err := s.rt.disk.Flatten(s.Context(), stack, flat)
	require.NoError(s, err)
	raw, err := os.ReadFile(flat)
	require.NoError(s, err)
	const block = 4096
	for i, want := range s.written {
		require.Equal(s, want, string(raw[(i+1)*block:][:len(want)]))
	}
}

// dieAt has another agent adopt the sandbox, take a snapshot and die at a step of its thaw; this
// one then takes it back, with a record of before.
func (s *snapped) dieAt(point string) {
	s.write("before-" + point)
	record, err := s.in.Record()
	require.NoError(s, err)
	s.in.Detach()
	dir := s.captureDir()
	agent := exec.Command(os.Args[0], "-test.run=^TestDyingAgent$")
	spec := s.spec
	spec.Port.Tap = nil
	job, err := json.Marshal(dyingJob{Spec: spec, Record: record, Dir: dir})
	require.NoError(s, err)
	agent.Env = append(os.Environ(), dyingAgent+"="+string(job), "ROOST_FAILPOINTS="+point+"=kill")
	out, err := agent.CombinedOutput()
	var exit *exec.ExitError
	require.True(s, errors.As(err, &exit), "%s: %v: %s", point, err, out)
	require.Equal(s, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal(), "%s: %s", point, out)

	s.rt = newMicroVM(s)
	s.in, err = s.rt.Adopt(s.Context(), s.spec, record)
	require.NoError(s, err, point)
	raw, err := os.ReadFile(filepath.Join(dir, "record"))
	require.NoError(s, err)
	s.thaw()
	saved := len(s.written)
	s.write("after-" + point)
	all := s.written
	s.written = all[:saved]
	s.holdsAll(runtime.Capture{Dir: dir, Record: raw}) // and none of its layers has changed
	s.written = all
}

// restored is a capture of what was started from the last one.
func (s *snapped) restored() runtime.Capture {
	s.freeze()
	last := s.capture()
	require.NoError(s, s.in.Stop(s.Context()))
	s.spec.DiskIndex++
	var err error
	s.in, err = s.rt.Restore(s.Context(), s.spec, last)
	require.NoError(s, err)
	s.thaw()
	s.write("restored")
	s.freeze()
	c := s.capture()
	require.NoError(s, s.in.Stop(s.Context()))
	return c
}

const dyingAgent = "ROOST_MICROVM_AGENT"

type dyingJob struct {
	Spec   runtime.Spec
	Record json.RawMessage
	Dir    string
}

// TestDyingAgent is the agent that dieAt starts; it does not return.
func TestDyingAgent(t *testing.T) {
	raw, ok := os.LookupEnv(dyingAgent)
	if !ok {
		return // no test of its own
	}
	var job dyingJob
	require.NoError(t, json.Unmarshal([]byte(raw), &job))
	in, err := newMicroVM(t).Adopt(t.Context(), job.Spec, job.Record)
	require.NoError(t, err)
	require.NoError(t, in.Freeze(t.Context()))
	record, _, err := in.Capture(t.Context(), job.Dir, runtime.CaptureOptions{})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(job.Dir, "record"), record, 0o600))
	require.NoError(t, in.Thaw(t.Context()))
	in.Detach()
}
