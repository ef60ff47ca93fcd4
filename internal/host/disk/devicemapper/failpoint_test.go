//go:build failpoints

package devicemapper_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/devicemapper"
	"github.com/roosthq/roost/internal/host/disk/disktest"
)

// The steps of each operation at which it fails, or its process dies. Not parallel: the environment
// is shared.
var (
	attachPoints = []string{
		"devicemapper.attach.begun", "devicemapper.attach.level", "devicemapper.attach.top", "devicemapper.attach.built",
		"devicemapper.loop.attach", "devicemapper.ioctl.create", "devicemapper.ioctl.load", "devicemapper.ioctl.resume",
	}
	switchPoints = []string{
		"devicemapper.open.written", "devicemapper.seal.opened", "devicemapper.loop.attach", "devicemapper.ioctl.suspend",
		"devicemapper.seal.suspended", "devicemapper.ioctl.create", "devicemapper.ioctl.load", "devicemapper.seal.loaded",
		"devicemapper.seal.switched", "devicemapper.seal.resumed", "devicemapper.ioctl.rename", "devicemapper.seal.renamed",
		"devicemapper.seal.trimmed", "devicemapper.seal.sync",
	}
	sealPoints   = []string{"devicemapper.ioctl.suspend", "devicemapper.seal.trimmed", "devicemapper.seal.sync"}
	detachPoints = []string{"devicemapper.ioctl.remove", "devicemapper.detach.removed"}
)

// play is one disk over a layer, with a VM.
type play struct {
	*testing.T
	d    *devicemapper.Driver
	live disk.Live
	vm   disktest.VM
	data []byte
}

func newPlay(t *testing.T) *play {
	p := &play{T: t, d: newDriver(t, "play"), data: noise(mb)}
	stack := seal(t, p.d, create(t, p.d, 16*mb))
	var err error
	p.live, err = p.d.Open(t.Context(), stack, 16*mb, t.TempDir(), 0)
	require.NoError(t, err)
	return p
}

// run attaches the disk and has its VM write.
func (p *play) run() {
	p.vm = attach(p, p.d, p.live)
	write(p, p.vm, p.data, 5*mb+512)
}

// check reads all back and has the VM write on.
func (p *play) check() {
	require.True(p, bytes.Equal(p.data, read(p, p.vm, 5*mb+512, mb)))
	p.data = noise(mb)
	write(p, p.vm, p.data, 5*mb+512)
}

// end detaches the disk and requires that nothing is left.
func (p *play) end() {
	stop(p, p.d, p.vm, p.live)
	layer, _, err := p.d.Seal(p.Context(), p.live, 0, nil)
	require.NoError(p, err)
	require.NoError(p, p.d.Verify(p.Context(), layer))
	census(p, p.d)
}

// failing has an operation fail at a step.
func (p *play) failing(point string, do func() error) {
	p.Setenv("ROOST_FAILPOINTS", point+"=error")
	err := do()
	p.Setenv("ROOST_FAILPOINTS", "")
	require.ErrorContains(p, err, "failpoint "+point)
}

func (p *play) switchTo(index int) (disk.Layer, *disk.Live, error) {
	return p.d.Seal(p.Context(), p.live, index, p.vm.Switch)
}

func TestFailedAttachLeavesNothing(t *testing.T) {
	for _, point := range attachPoints {
		t.Run(point, func(t *testing.T) {
			p := newPlay(t)
			p.failing(point, func() error { _, err := p.d.Attach(t.Context(), p.live); return err })
			census(t, p.d)
			p.run()
			p.end()
		})
	}
}

func TestFailedSealLeavesALiveDisk(t *testing.T) {
	for _, point := range sealPoints {
		t.Run(point, func(t *testing.T) {
			p := newPlay(t)
			p.run()
			p.failing(point, func() error { _, _, err := p.d.Seal(t.Context(), p.live, 0, nil); return err })
			st, err := os.Stat(p.live.Path)
			require.NoError(t, err)
			require.EqualValues(t, 0o600, st.Mode().Perm())
			p.check()
			p.end()
		})
	}
}

// TestFailedSwitch: before the device has its next table all is as it was, with no file more; after,
// the next disk comes with the error and the old one can be sealed again.
func TestFailedSwitch(t *testing.T) {
	for _, point := range switchPoints {
		t.Run(point, func(t *testing.T) {
			p := newPlay(t)
			p.run()
			var next *disk.Live
			p.failing(point, func() (err error) { _, next, err = p.switchTo(1); return err })
			p.check()
			if next == nil {
				require.Len(t, filesIn(t, filepath.Dir(p.live.Path)), 1)
			} else {
				layer, _, err := p.d.Seal(t.Context(), p.live, 0, nil)
				require.NoError(t, err)
				p.live = *next
				p.live.Stack.Layers[1] = layer
			}
			_, next, err := p.switchTo(2)
			require.NoError(t, err)
			p.live = *next
			p.check()
			p.end()
		})
	}
}

func TestFailedDetachIsRepeated(t *testing.T) {
	for _, point := range detachPoints {
		t.Run(point, func(t *testing.T) {
			p := newPlay(t)
			p.run()
			require.NoError(t, p.vm.Close())
			p.failing(point, func() error { return p.d.RemoveLive(t.Context(), p.live) })
			require.FileExists(t, p.live.Path)
			require.NoError(t, p.d.RemoveLive(t.Context(), p.live))
			require.NoFileExists(t, p.live.Path)
			census(t, p.d)
		})
	}
}

func TestFailedPublishLeavesNothing(t *testing.T) {
	p := newPlay(t)
	dir := t.TempDir()
	p.failing("devicemapper.publish.link", func() error {
		_, err := p.d.Flatten(t.Context(), p.live.Stack, filepath.Join(dir, "f"))
		return err
	})
	require.Empty(t, filesIn(t, dir))
}

// order is what a victim does.
type order struct {
	Op   string
	Live disk.Live
}

const victimEnv = "DEVICEMAPPER_TEST_VICTIM"

// victim is a process that is killed on its way.
func victim() {
	var o order
	d, err := devicemapper.New(devicemapper.Options{Installation: "play"})
	if err != nil || json.Unmarshal([]byte(os.Getenv(victimEnv)), &o) != nil {
		os.Exit(3)
	}
	ctx := context.Background()
	switch o.Op {
	case "attach":
		_, err = d.Attach(ctx, o.Live)
	case "detach":
		err = d.Detach(ctx, o.Live)
	case "seal":
		_, _, err = d.Seal(ctx, o.Live, 0, nil)
	case "switch":
		_, _, err = d.Seal(ctx, o.Live, 1, func(context.Context, disk.Attachment) error { return nil })
	}
	if err != nil {
		os.Exit(4)
	}
	os.Exit(5)
}

// killed has a process of its own do it, and die at that step.
func (p *play) killed(op, point string) {
	text, err := json.Marshal(order{op, p.live})
	require.NoError(p, err)
	cmd := exec.CommandContext(p.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+string(text), "ROOST_FAILPOINTS="+point+"=kill")
	err = cmd.Run()
	var exit *exec.ExitError
	require.ErrorAs(p, err, &exit)
	require.Equal(p, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal(), "%v", err)
}

func TestKilledInAttach(t *testing.T) {
	for _, point := range attachPoints {
		t.Run(point, func(t *testing.T) {
			p := newPlay(t)
			p.killed("attach", point)
			p.run()
			p.check()
			p.end()
		})
	}
}

func TestKilledInSeal(t *testing.T) {
	for _, point := range sealPoints {
		t.Run(point, func(t *testing.T) {
			p := newPlay(t)
			p.run()
			p.killed("seal", point)
			require.NoError(t, os.Chmod(p.live.Path, 0o600)) // as whoever takes a capture back
			_, err := p.d.Attach(t.Context(), p.live)
			require.NoError(t, err)
			p.check()
			p.end()
		})
	}
}

// TestKilledInSwitch: what the VM writes to is one of the two, Holds tells which, and Attach of
// that one puts all in order.
func TestKilledInSwitch(t *testing.T) {
	for _, point := range switchPoints {
		t.Run(point, func(t *testing.T) {
			p := newPlay(t)
			p.run()
			att, err := p.d.Attach(t.Context(), p.live)
			require.NoError(t, err)
			p.killed("switch", point)
			at, err := os.Stat(att.Nodes[0].Path)
			require.NoError(t, err)
			old := p.live
			holds, err := p.d.Holds(t.Context(), old, at)
			require.NoError(t, err)
			next := disk.Live{
				Stack: old.Stack.With(disk.Layer{Path: old.Path, SizeBytes: old.SizeBytes}),
				Path:  p.d.LivePath(filepath.Dir(old.Path), 1), SizeBytes: old.SizeBytes,
			}
			if !holds {
				p.live = next
			}
			again, err := p.d.Attach(t.Context(), p.live)
			require.NoError(t, err)
			require.Equal(t, att, again)
			p.check()
			if holds {
				require.NoError(t, p.d.RemoveLive(t.Context(), next))
			} else {
				require.NoError(t, p.d.Detach(t.Context(), old), "it is a layer now, and has no devices")
				p.check()
			}
			p.end()
		})
	}
}

func TestKilledInDetach(t *testing.T) {
	for _, point := range detachPoints {
		t.Run(point, func(t *testing.T) {
			p := newPlay(t)
			p.run()
			require.NoError(t, p.vm.Close())
			p.killed("detach", point)
			require.NoError(t, p.d.Detach(t.Context(), p.live))
			census(t, p.d)
		})
	}
}
