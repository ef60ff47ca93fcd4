package devicemapper_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/loop"
	"github.com/roosthq/roost/internal/host/disk/disktest"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// The figures that the design rests on:
//
//	go test -exec '.cache/bin/lane disk --' -run xxx -bench . -benchtime 5x ./internal/host/disk/devicemapper

// BenchmarkClone is the disk's share of a sandbox's start and end; it must not depend on the base.
func BenchmarkClone(b *testing.B) {
	for _, size := range []int64{100 * mb, gb, 4 * gb} {
		b.Run(fmt.Sprintf("base=%dMB", size/mb), func(b *testing.B) {
			d, base, dir := newDriver(b, "bnch"), newBase(b, size), b.TempDir()
			before := d.Calls()
			for b.Loop() {
				live, err := d.Create(b.Context(), base, 5*gb, dir, 0)
				require.NoError(b, err)
				_, err = d.Attach(b.Context(), live)
				require.NoError(b, err)
				require.NoError(b, d.RemoveLive(b.Context(), live))
			}
			b.ReportMetric(float64(d.Calls()-before)/float64(b.N), "ioctls/op")
		})
	}
}

// BenchmarkWrite writes 4 MiB in blocks of 4 KiB, or 32 MiB in blocks of 1 MiB, to a live disk, for the
// first time and again, and to a raw file through a loop device. Each 4 KiB is waited for, which is where metadata costs most.
func BenchmarkWrite(b *testing.B) {
	d := newDriver(b, "bnch")
	for name, order := range map[string]func(n int) []int{
		"sequential": func(n int) []int {
			all := make([]int, n)
			for i := range all {
				all[i] = i
			}
			return all
		},
		"random": rand.Perm,
	} {
		for block, total := range map[int]int{4 << 10: 4 * mb, mb: 32 * mb} {
			at := order(total / block)
			b.Run(fmt.Sprintf("%s/%dK/cow", name, block>>10), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					live := create(b, d, 64*mb)
					vm := attach(b, d, live)
					b.StartTimer()
					first := timed(b, func() { writeAll(b, vm, at, block) })
					again := timed(b, func() { writeAll(b, vm, at, block) })
					b.ReportMetric(first, "first-ms")
					b.ReportMetric(again, "again-ms")
					b.StopTimer()
					stop(b, d, vm, live)
					b.StartTimer()
				}
			})
			b.Run(fmt.Sprintf("%s/%dK/raw", name, block>>10), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					vm, release := rawDevice(b)
					b.StartTimer()
					b.ReportMetric(timed(b, func() { writeAll(b, vm, at, block) }), "first-ms")
					b.ReportMetric(timed(b, func() { writeAll(b, vm, at, block) }), "again-ms")
					b.StopTimer()
					require.NoError(b, vm.Close())
					release()
					b.StartTimer()
				}
			})
		}
	}
}

func writeAll(b *testing.B, vm disktest.VM, order []int, block int) {
	data := noise(block)
	for _, i := range order {
		write(b, vm, data, int64(i*block))
	}
	require.NoError(b, vm.Flush())
}

func timed(b *testing.B, do func()) float64 {
	before := b.Elapsed()
	do()
	return float64((b.Elapsed() - before).Microseconds()) / 1000
}

// rawDevice is a sparse file as a loop device.
func rawDevice(b *testing.B) (disktest.VM, func()) {
	path := filepath.Join(b.TempDir(), "raw")
	require.NoError(b, loop.CreateSparse(path, 64*mb, 0o600))
	ref, err := loop.NewRegistry("roost-test-raw").Acquire(b.Context(), path, false)
	require.NoError(b, err)
	vm := disktest.OpenDevice(b, disk.Attachment{Nodes: []disk.Node{{Path: ref.Path, Format: "raw"}}})
	return vm, func() { require.NoError(b, ref.Release()) }
}

// BenchmarkSeal200MB compares how long a VM's longest write waits while 200 MB are sealed under it
// with how long a sparse copy of the file takes, for which the VM would have to stand still.
func BenchmarkSeal200MB(b *testing.B) {
	d := newDriver(b, "bnch")
	for b.Loop() {
		live := create(b, d, gb)
		vm := attach(b, d, live)
		for at := int64(0); at < 200*mb; at += mb {
			write(b, vm, noise(mb), at)
		}
		require.NoError(b, vm.Flush())
		b.ReportMetric(timed(b, func() { copyFile(b, live.Path) }), "copy-ms")
		stopWriter := writeOn(b, vm)
		var next *disk.Live
		b.ReportMetric(timed(b, func() {
			var err error
			_, next, err = d.Seal(b.Context(), live, 1, vm.Switch)
			require.NoError(b, err)
		}), "reload-ms")
		b.ReportMetric(float64(stopWriter().Microseconds())/1000, "longest-write-ms")
		stop(b, d, vm, *next)
	}
}

// writeOn writes one block again and again; the returned function ends that and tells how long the
// longest write took.
func writeOn(b *testing.B, vm disktest.VM) func() time.Duration {
	end, longest := make(chan struct{}), make(chan time.Duration)
	go func() {
		var most time.Duration
		for block := noise(4096); ; {
			select {
			case <-end:
				longest <- most
				return
			default:
			}
			began := time.Now()
			if _, err := vm.WriteAt(block, 0); err != nil {
				b.Error(err)
			}
			most = max(most, time.Since(began))
		}
	}()
	return func() time.Duration {
		close(end)
		return <-longest
	}
}

func copyFile(b *testing.B, path string) {
	src, err := os.Open(path)
	require.NoError(b, err)
	defer func() { _ = src.Close() }()
	dst, err := os.Create(filepath.Join(b.TempDir(), "copy"))
	require.NoError(b, err)
	defer func() { _ = dst.Close() }()
	size, err := src.Seek(0, io.SeekEnd)
	require.NoError(b, err)
	require.NoError(b, layerfile.Copy(b.Context(), dst, src, 0, size))
	require.NoError(b, dst.Sync())
	require.NoError(b, os.Remove(dst.Name()))
}
