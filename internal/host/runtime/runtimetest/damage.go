package runtimetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// flips is how many random damages are done to a capture; ROOST_FLIPS sets it for a soak.
func flips(t testing.TB) int {
	t.Helper()
	const some = 40
	text := os.Getenv("ROOST_FLIPS")
	if text == "" {
		return some
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, "ROOST_FLIPS")
	return n
}

// seed of the random damages: ROOST_FLIPS_SEED repeats a run.
func seed(t testing.TB) uint64 {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if text := os.Getenv("ROOST_FLIPS_SEED"); text != "" {
		var err error
		n, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, "ROOST_FLIPS_SEED")
	}
	t.Logf("ROOST_FLIPS_SEED=%d repeats this run", n)
	return n
}

// layered is a paused sandbox's capture that stands on an earlier one's files, all of them in one
// directory.
func (s *suite) layered(t *testing.T) (*box, saved, ticker) {
	t.Helper()
	b := s.fresh(t)
	tick := b.tick()
	b.sh("dd if=/dev/urandom of=/dev/shm/weight bs=64k count=16 2>/dev/null; echo kept >/root/file; dd if=/dev/urandom of=/root/big bs=64k count=16 2>/dev/null")
	first := b.pause(runtime.CaptureOptions{})
	b = b.again()
	b.start(first)
	b.sh("dd if=/dev/urandom of=/dev/shm/weight bs=64k count=8 2>/dev/null; echo more >/root/more")
	second := b.pause(runtime.CaptureOptions{Parent: &first.Capture})
	next := b.again()
	return next, next.link(second, next.newCaptureDir("linked")), tick
}

// testDamaged: a capture that is not whole is refused before a guest runs, wherever it is damaged,
// and leaves nothing; mended it is as good as ever.
func (s *suite) testDamaged(t *testing.T) {
	next, c, tick := s.layered(t)
	files := captureFiles(t, c)
	cold := 0
	for _, name := range files {
		for _, d := range damages() {
			if d.inside && s.Unchecked != nil && s.Unchecked(name) {
				continue
			}
			err := next.refuses(c, name, d)
			if strings.Contains(fault.HintOf(err), "--cold") {
				cold++
			}
		}
	}
	if next.rt.Capabilities().DiskApart {
		require.Positive(t, cold, "where only memory is damaged, the hint says what still works")
	}
	next.start(c) // the start that failed so often
	next.goesOn(tick, next.ticks(tick))
	require.Equal(t, "kept\nmore", next.sh(uncached+"cat /root/file /root/more"))
}

// testFlips is testDamaged at random places.
func (s *suite) testFlips(t *testing.T) {
	next, c, tick := s.layered(t)
	files := captureFiles(t, c)
	r := rand.New(rand.NewPCG(seed(t), 0))
	all := damages()
	for range flips(t) {
		name := files[r.IntN(len(files))]
		d := all[r.IntN(len(all))]
		if d.inside && s.Unchecked != nil && s.Unchecked(name) {
			continue
		}
		d.where = r.Float64()
		_ = next.refuses(c, name, d) // it wants what it returns
	}
	next.start(c)
	next.goesOn(tick, next.ticks(tick))
}

// captureFiles are the files of a capture in its directory.
func captureFiles(t *testing.T, c saved) []string {
	t.Helper()
	var out []string
	for _, name := range filesBelow(t, c.Dir) {
		if name != "manifest.json" { // the suite's own
			out = append(out, name)
		}
	}
	require.NotEmpty(t, out)
	return out
}

// damage is something that happens to a file at a place (0 its begin, 1 its end).
type damage struct {
	name  string
	where float64
	// inside: the file's size is as it was.
	inside bool
	do     func(path string, at int64) error
}

func damages() []damage {
	return []damage{
		{"missing", 0.5, false, func(path string, _ int64) error { return os.Remove(path) }},
		{"cut", 0.5, false, os.Truncate},
		{"flipped", 0.5, true, func(path string, at int64) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			b := []byte{0}
			if _, err := f.ReadAt(b, at); err != nil {
				return err
			}
			b[0] ^= 1 << (at % 8)
			_, err = f.WriteAt(b, at)
			return err
		}},
	}
}

// refuses damages a copy of a file in the capture's place, wants the restore refused, and puts
// the file back.
func (b *box) refuses(c saved, name string, d damage) error {
	b.Helper()
	path := filepath.Join(c.Dir, name)
	whole, err := os.ReadFile(path)
	require.NoError(b, err)
	if len(whole) == 0 && d.name != "missing" {
		return nil
	}
	at := min(int64(d.where*float64(len(whole))), int64(len(whole)-1))
	what := fmt.Sprintf("%s of %d bytes is %s at %d", name, len(whole), d.name, at)
	aside := path + ".aside"
	require.NoError(b, os.Rename(path, aside)) // other captures have the same file
	require.NoError(b, os.WriteFile(path, whole, 0o600))
	require.NoError(b, d.do(path, at), what)
	before := b.files()
	in, err := b.rt.Restore(b.ctx(), b.spec, c.Capture)
	if err == nil {
		b.in = in
	}
	require.Error(b, err, what)
	require.Equal(b, fault.DataLoss, fault.KindOf(err), "%s: %v", what, err)
	require.NotEmpty(b, fault.HintOf(err), what)
	b.nothingRuns()
	require.Equal(b, before, b.files(), "%s: %v", what, err)
	require.NoError(b, os.RemoveAll(path))
	require.NoError(b, os.Rename(aside, path))
	return err
}

// testColdStart: where memory and disk are apart, a capture whose memory is damaged in every file
// boots from its disk.
func (s *suite) testColdStart(t *testing.T) {
	next, c, tick := s.layered(t)
	if !next.rt.Capabilities().DiskApart {
		next.bootable()
		_, err := next.rt.Boot(next.ctx(), next.spec, runtime.BootOptions{From: &c.Capture})
		refused(t, err, fault.FailedPrecondition)
		require.Empty(t, next.files())
		return
	}
	for _, name := range captureFiles(t, c) {
		err := next.refuses(c, name, damages()[1])
		if strings.Contains(fault.HintOf(err), "--cold") {
			require.NoError(t, os.Remove(filepath.Join(c.Dir, name)))
		}
	}
	_, err := next.rt.Restore(next.ctx(), next.spec, c.Capture)
	refused(t, err, fault.DataLoss)
	_, _, err = next.rt.Compact(next.ctx(), next.spec, c.Capture)
	require.NoError(t, err, "whatever there is of the memory")
	next.boot(runtime.BootOptions{From: &c.Capture})
	next.introduce()
	next.thawGuest()
	require.Equal(t, "kept\nmore", next.sh("cat /root/file /root/more"))
	require.Positive(t, next.ticks(tick))
}

// testDamagedLarge: a disk that is too large to be verified first is verified while its guest
// runs; who has damaged layers is ended, and the reason says which.
func (s *suite) testDamagedLarge(t *testing.T) {
	if !s.rt.Capabilities().DiskApart {
		t.Skip("this runtime verifies all of a capture first (Capabilities.DiskApart)")
	}
	const diskMB, fileMB = 512, runtime.VerifyFirst>>20 + 10
	b := s.newBox(t)
	b.spec.Resources.DiskSizeMB = diskMB
	b.start(s.template(t))
	b.sh("tr '\\0' x </dev/zero | dd of=/root/big bs=1M count=%d iflag=fullblock 2>/dev/null; sync", fileMB)
	c := b.pause(runtime.CaptureOptions{})
	files, err := b.rt.Files(c.Capture)
	require.NoError(t, err)
	large := ""
	for _, f := range files {
		if allocatedBytes(t, f) > runtime.VerifyFirst && strings.HasPrefix(f, b.spec.DiskDir) {
			large = f
		}
	}
	require.NotEmpty(t, large, "a layer of more than is verified first")

	whole := b.again()
	whole.start(c)
	require.Equal(t, "x", whole.sh("tail -c 1 /root/big"))
	whole.stop()

	require.NoError(t, damages()[2].do(large, allocatedBytes(t, large)/2))
	next := b.again()
	in, err := next.rt.Restore(next.ctx(), next.spec, c.Capture)
	require.NoError(t, err, "the verdict comes later")
	next.in = in
	exit := next.awaitExit()
	require.False(t, exit.Requested)
	require.Contains(t, exit.Reason, large)
	next.nothingRuns()
	require.Error(t, next.in.Thaw(t.Context()))
	require.NoError(t, next.in.Stop(t.Context()))
	require.False(t, next.in.Exit().Requested, "nobody asked for it")
	require.NoError(t, next.rt.Discard(t.Context(), next.spec))

	booted := b.again()
	booted.spec.DiskIndex += 2
	booted.bootable()
	booted.in, err = booted.rt.Boot(booted.ctx(), booted.spec, runtime.BootOptions{From: &c.Capture})
	require.NoError(t, err)
	require.Contains(t, booted.awaitExit().Reason, large)
}
