package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestEveryFailpointIsUsed: a step of the state machine without a test that fails or dies there
// fails here.
func TestEveryFailpointIsUsed(t *testing.T) {
	t.Parallel()
	sources, err := filepath.Glob("../../internal/host/sandbox/*.go")
	require.NoError(t, err)
	named := regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)
	points := map[string]bool{}
	for _, path := range sources {
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, m := range named.FindAllStringSubmatch(string(raw), -1) {
			points[m[1]] = true
		}
	}
	require.Greater(t, len(points), 10)
	tests, err := os.ReadFile("crash_test.go")
	require.NoError(t, err)
	for point := range points {
		require.Contains(t, string(tests), `"`+point+`"`, "a step without a test that kills the agent there")
	}
}
