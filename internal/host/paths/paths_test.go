package paths

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSocketsMustFit(t *testing.T) {
	t.Parallel()
	require.NoError(t, Data(DefaultData).Validate())
	require.NoError(t, Data("/"+strings.Repeat("a", socketLimit-len(LongestSocket)-1)).Validate())
	require.ErrorContains(t, Data("/"+strings.Repeat("a", socketLimit-len(LongestSocket))).Validate(), "1 bytes too long")
	require.ErrorContains(t, Data("relative").Validate(), "not an absolute path")
}

func TestEverythingOfASandboxLiesInItsDirectory(t *testing.T) {
	t.Parallel()
	d := Data("/var/lib/roost")
	s := d.Sandbox("abc")
	for _, path := range []string{s.Journal(), s.Run(), s.Disk(), s.Captures(), s.Capture(1), s.CaptureStage(1)} {
		require.True(t, strings.HasPrefix(path, s.String()+"/"), path)
	}
	require.NotEqual(t, s.Capture(1), s.CaptureStage(1))
	require.True(t, strings.HasPrefix(d.Trash(), d.Sandboxes()+"/"), "moving there is a rename")
}
