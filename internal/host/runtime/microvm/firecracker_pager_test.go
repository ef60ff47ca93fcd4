package microvm

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/disk/devicemapper"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm/firecracker"
	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

// served is a sandbox in Firecracker whose memory is layered, so that a page server has it.
type served struct {
	*testing.T
	rt   *Runtime
	spec runtime.Spec
	line vmmtest.Line
	in   *instance
	// captures counts, to name directories.
	captures int
}

const servedMB = 64

func newServed(t *testing.T) *served {
	t.Helper()
	if os.Getenv(firecracker.EnvBinary) == "" || os.Getenv(firecracker.EnvJailer) == "" {
		t.Skip("needs Firecracker, KVM and device-mapper: make test-firecracker FC=PATH JAILER=PATH")
	}
	const uid, diskMB = 1_900_000_125, 1
	fixtures, dir := vmmtest.Build(t), t.TempDir()
	s := &served{T: t, line: vmmtest.NewLineOf(t, uid), rt: newFirecracker(t)}
	base := filepath.Join(dir, "base")
	require.NoError(t, os.WriteFile(base, make([]byte, diskMB<<20), 0o400))
	s.spec = runtime.Spec{
		ID: "served", UID: uid, RunDir: filepath.Join(dir, "run"), DiskDir: filepath.Join(dir, "disk"), Initrd: fixtures.Initrd,
		Resources: runtime.Resources{VCPUs: 1, MemoryMB: 256, DiskSizeMB: diskMB},
		Template:  runtime.Template{KernelELF: fixtures.KernelELF, Disk: base, DiskBytes: diskMB << 20},
		Port:      runtime.Port{Namespace: s.line.Namespace(), TapName: s.line.TapName(), MAC: vmmtest.GuestMAC},
	}
	require.NoError(t, os.Mkdir(s.spec.RunDir, 0o700))
	require.NoError(t, os.Mkdir(s.spec.DiskDir, 0o700))
	first := s.rt // those of later agents are closed by then
	t.Cleanup(func() { require.NoError(t, first.Discard(context.Background(), s.spec)) })
	return s
}

func newFirecracker(t testing.TB) *Runtime {
	t.Helper()
	installation := fmt.Sprintf("p%03d", os.Getpid()%1000)
	disks, err := devicemapper.New(devicemapper.Options{Installation: installation})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, disks.Close()) })
	driver, err := firecracker.New(t.Context(), firecracker.Options{CgroupParent: "roost-" + installation})
	require.NoError(t, err)
	return New(driver, disks)
}

// pause captures the sandbox and ends it.
func (s *served) pause() runtime.Capture {
	s.Helper()
	s.captures++
	dir := filepath.Join(filepath.Dir(s.spec.DiskDir), fmt.Sprintf("capture-%d", s.captures))
	require.NoError(s, os.Mkdir(dir, 0o700))
	require.NoError(s, s.in.Freeze(s.Context()))
	raw, _, err := s.in.Capture(s.Context(), dir, runtime.CaptureOptions{})
	require.NoError(s, err)
	require.NoError(s, s.in.Stop(s.Context()))
	s.spec.DiskIndex++
	return runtime.Capture{Dir: dir, Record: raw}
}

func (s *served) start(c runtime.Capture) {
	s.Helper()
	in, err := s.rt.Restore(s.Context(), s.spec, c)
	require.NoError(s, err)
	s.in = in.(*instance)
	require.NoError(s, in.Thaw(s.Context()))
}

// killPager kills the page server as somebody may at any time, and waits for the next one.
func (s *served) killPager() {
	s.Helper()
	p := s.in.ram.pager.current()
	require.NoError(s, unix.Kill(p.Handle().PID, unix.SIGKILL))
	require.Eventually(s, func() bool { return s.in.ram.pager.current() != p }, 5*time.Minute, time.Millisecond)
}

// whole asks the guest to read all of what it once wrote.
func (s *served) whole() {
	s.Helper()
	require.Equal(s, fmt.Sprint(servedMB), s.line.Ask(s, "marked served"))
}

// A page server that dies is replaced while its VM waits, by the agent that has the VM or by one
// that adopts it; no page is lost or wrong. It goes when the VM does.
func TestPagerDies(t *testing.T) {
	s := newServed(t)
	in, err := s.rt.Boot(t.Context(), s.spec, runtime.BootOptions{Template: true})
	require.NoError(t, err)
	s.in = in.(*instance)
	require.Equal(t, "pong", s.line.Ask(t, "ping"))
	warm := s.pause()
	s.start(warm)
	require.Nil(t, s.in.ram.pager, "a template's memory is a file")
	require.Equal(t, "ok", s.line.Ask(t, fmt.Sprintf("mark %d served", servedMB)))
	c := s.pause()

	s.start(c)
	require.NotNil(t, s.in.ram.pager)
	for range 5 {
		began := time.Now()
		s.killPager()
		require.Equal(t, "pong", s.line.Ask(t, "ping"))
		t.Logf("answered %d ms after its page server was killed", time.Since(began).Milliseconds())
	}
	s.whole()
	record, err := s.in.Record()
	require.NoError(t, err)
	s.in.Detach()
	s.adopt(record) // with its page server
	s.whole()

	c = s.pause() // what it was restored from is in it
	s.start(c)
	old, err := s.in.Record()
	require.NoError(t, err)
	s.killPager()
	require.Equal(t, "pong", s.line.Ask(t, "ping"))
	s.in.Detach()
	s.adopt(old) // the record of one that is long dead
	s.whole()
	require.NoError(t, s.in.Stop(t.Context()))
	require.FileExists(t, filepath.Join(s.spec.RunDir, workingSet))
	held, err := s.rt.Held(t.Context())
	require.NoError(t, err)
	require.Empty(t, held)
}

func (s *served) adopt(record json.RawMessage) {
	s.Helper()
	s.rt = newFirecracker(s)
	in, err := s.rt.Adopt(s.Context(), s.spec, record)
	require.NoError(s, err)
	s.in = in.(*instance)
}
