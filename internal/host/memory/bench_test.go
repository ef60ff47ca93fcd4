package memory

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// 512 MB of which 100 MB are used, as a template of that size has after its boot.
const (
	benchPages = 512 << 20 / PageSize
	benchUsed  = 100 << 20 / PageSize
)

func benchTemplate(b *testing.B) *os.File {
	f, err := NewTemplate("bench", benchPages*PageSize)
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 4*PageSize)
	pattern(data, 1)
	for i := range benchUsed / 4 {
		if _, err := f.WriteAt(data, int64(i)*16*PageSize); err != nil {
			b.Fatal(err)
		}
	}
	if err := Seal(f); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	return f
}

func BenchmarkLoad(b *testing.B) {
	path := filepath.Join(b.TempDir(), "mem")
	if _, err := Save(context.Background(), benchTemplate(b), path); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		f, _, err := Load(context.Background(), path, benchPages*PageSize)
		if err != nil {
			b.Fatal(err)
		}
		_ = f.Close()
	}
}

func BenchmarkVerify(b *testing.B) {
	f := benchTemplate(b)
	path := filepath.Join(b.TempDir(), "mem")
	if _, err := Save(context.Background(), f, path); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := verifyFile(context.Background(), path, benchPages*PageSize, f); err != nil {
			b.Fatal(err)
		}
	}
}

// A VM with 20 MB of its own, a quarter of it zero, in runs of 8 pages.
func benchVM(b *testing.B) *vmm {
	v := startVMM(b, benchTemplate(b))
	for i := range 640 {
		v.do([]string{"fill", "fill", "fill", "zero"}[i%4], i*200, 8, uint64(i))
	}
	return v
}

func BenchmarkFirstCapture(b *testing.B) {
	v := benchVM(b)
	dir := b.TempDir()
	for b.Loop() {
		mp, stats, err := CaptureFile(context.Background(), v.m, nil, dir, false)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(stats.Scan.Microseconds()), "µs-scan")
		b.ReportMetric(float64(stats.Private), "pages")
		_ = os.Remove(filepath.Join(dir, mp.LayerName(0)))
	}
}

func BenchmarkIdleCapture(b *testing.B) {
	v := benchVM(b)
	dir := b.TempDir()
	mp, _, err := CaptureFile(context.Background(), v.m, nil, dir, false)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		again, _, err := CaptureFile(context.Background(), v.m, mp, dir, false)
		if err != nil {
			b.Fatal(err)
		}
		_ = os.Remove(filepath.Join(dir, again.LayerName(1)))
	}
}

func BenchmarkApply(b *testing.B) {
	v := benchVM(b)
	s := &saved{t: b, dir: b.TempDir()}
	s.capture(v)
	layers := s.open()
	for b.Loop() {
		v.do("discard", 0, benchPages, 0)
		if _, err := Apply(context.Background(), v.m, s.mp, layers); err != nil {
			b.Fatal(err)
		}
	}
}
