package image

import (
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// publishBootable publishes a template of an earlier Roost: its kernel is a bzImage, and the
// uncompressed one is not there.
func publishBootable(t *testing.T, s *Store, name, disk string) Template {
	t.Helper()
	kernel, err := os.ReadFile(bzImage(t, gzipped(t, smallKernel(t, nil)), nil))
	require.NoError(t, err)
	got := publishSmall(t, s, name, string(kernel), disk)
	require.Empty(t, got.KernelELFPath())
	return got
}

func TestKernelELFOfAnEarlierTemplate(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	old := publishBootable(t, s, "base", "disk")
	other := publishBootable(t, s, "other", "another disk")
	replaced := publishBootable(t, s, "base", "newer disk")
	blobs := len(entries(t, s, blobsDir))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got, err := s.WithKernelELF(old)
			if err != nil || got.Digest != old.Digest || got.KernelELFPath() == "" {
				t.Errorf("%v, %+v", err, got)
			}
		})
	}
	wg.Wait()
	require.Len(t, entries(t, s, blobsDir), blobs+1, "made once")
	require.Empty(t, entries(t, s, stageDir))
	// A second look at the store, as the next roost has it.
	again, err := Open(s.Dir(), quiet)
	require.NoError(t, err)
	for _, want := range []Template{old, other, replaced} {
		got, err := again.TemplateByDigest(want.Digest)
		require.NoError(t, err)
		data, err := os.ReadFile(got.KernelELFPath())
		require.NoError(t, err)
		require.Equal(t, smallKernel(t, nil), data)
		require.NoError(t, got.Verify())
		require.Positive(t, got.SizeBytes)
		got.KernelELF, got.SizeBytes, want.SizeBytes = File{}, 0, 0
		require.Equal(t, want, got, "nothing else has changed")
		require.Equal(t, want.Digest, got.digest())
	}
	byName, err := again.Template("base")
	require.NoError(t, err)
	require.NotEmpty(t, byName.KernelELFPath())
}

// TestKernelELFThatWasSwept: an earlier Roost that opens the store removes what it does not know.
func TestKernelELFThatWasSwept(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	with, err := s.WithKernelELF(publishBootable(t, s, "base", "disk"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(with.KernelELFPath()))
	require.NoError(t, os.Remove(s.path(blobsDir, blobOf(File{Path: blobsDir + "/" + with.KernelELFPath()[len(s.path(blobsDir))+1:]}))))
	without, err := s.Template("base")
	require.NoError(t, err, "the template is whole without it")
	require.Empty(t, without.KernelELFPath())
	again, err := s.WithKernelELF(without)
	require.NoError(t, err)
	require.Equal(t, with, again)
	require.NoError(t, again.Verify())
}

func TestKernelELFGoesWithItsTemplate(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	work, d := smallDraft(t, s, "made", "kernel", "disk")
	var err error
	d.elfDir, err = work.mkdir("vmlinux")
	require.NoError(t, err)
	d.Made = &Made{By: "me"}
	d.Modules = nil
	d.nameFiles([]string{"virtio", "virtio_blk"})
	require.NoError(t, os.WriteFile(d.KernelELF.Path, []byte("vmlinux"), 0o600))
	made, err := s.publish(d)
	require.NoError(t, err)
	require.NoError(t, work.remove())
	require.NoError(t, made.Verify())
	require.Len(t, entries(t, s, blobsDir), 4)
	require.NoError(t, s.Remove("me", "made"))
	_, err = s.Sweep("me", func(string) bool { return false })
	require.NoError(t, err)
	require.Empty(t, entries(t, s, blobsDir))
}

func TestKernelELFOfWhatIsNoKernel(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	_, err := s.WithKernelELF(publishSmall(t, s, "base", "not a kernel", "disk"))
	require.True(t, fault.Is(err, fault.Invalid), err)
	require.ErrorContains(t, err, "it is no bzImage")
	require.Empty(t, entries(t, s, stageDir))
	require.Len(t, entries(t, s, blobsDir), 3)
}
