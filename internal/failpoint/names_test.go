package failpoint_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// root of the repository.
const root = "../.."

var form = regexp.MustCompile(`^[a-z0-9]+(\.[a-z0-9]+){2}$`)

// TestEveryFailpointIsDeclaredAndHit: the program lists what it declares, so a step that was
// forgotten in either place fails here.
func TestEveryFailpointIsDeclaredAndHit(t *testing.T) {
	t.Parallel()
	declared, hit := calls(t, "Declare"), calls(t, "Hit")
	require.Greater(t, len(declared), 50)
	for name, dir := range declared {
		assert.Regexp(t, form, name, "PACKAGE.OPERATION.STEP")
		assert.Contains(t, hit, name, "%s declares it, and no step hits it", dir)
	}
	for name, dir := range hit {
		assert.Contains(t, declared, name, "a step in %s hits it, and nobody declares it", dir)
	}
}

// TestEveryFailpointHasATest: a step that is given a name without a test that uses it fails here.
// The state machine's are rows of test/e2e's tables, at each of which the real binary is killed
// (that the tables have all that the binary lists is seen to there); the others are used by their
// package's tests or the real binary's.
func TestEveryFailpointHasATest(t *testing.T) {
	t.Parallel()
	e2e := tests(t, "test/e2e")
	table, err := os.ReadFile(filepath.Join(root, "test/e2e/crash_test.go"))
	require.NoError(t, err)
	for name, dir := range calls(t, "Declare") {
		where, what := e2e+tests(t, dir), name
		if strings.HasPrefix(name, "sandbox.") {
			where, what = string(table), strconv.Quote(name)
		}
		assert.True(t, strings.Contains(where, what), "failpoint %s of %s is used by no test", name, dir)
	}
}

// calls are the names that a function of this package is called with in the non-test sources, each
// with its package's directory.
func calls(t *testing.T, function string) map[string]string {
	t.Helper()
	found := map[string]string{}
	each(t, "internal", func(path string) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		require.NoError(t, err)
		dir, err := filepath.Rel(root, filepath.Dir(path))
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && isCall(call.Fun, function) {
				for _, arg := range call.Args {
					found[literal(t, path, arg)] = dir
				}
			}
			return true
		})
	})
	return found
}

func literal(t *testing.T, path string, arg ast.Expr) string {
	t.Helper()
	lit, ok := arg.(*ast.BasicLit)
	require.True(t, ok, "%s: a failpoint's name must be written out", path)
	name, err := strconv.Unquote(lit.Value)
	require.NoError(t, err)
	return name
}

func isCall(fun ast.Expr, function string) bool {
	sel, ok := fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != function {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "failpoint"
}

// tests is the text of a directory's tests.
func tests(t *testing.T, dir string) string {
	t.Helper()
	var text strings.Builder
	each(t, dir, func(path string) {
		if strings.HasSuffix(path, "_test.go") {
			raw, err := os.ReadFile(path)
			require.NoError(t, err)
			text.Write(raw)
		}
	})
	return text.String()
}

func each(t *testing.T, dir string, f func(path string)) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(filepath.Join(root, dir), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && strings.HasSuffix(path, ".go") {
			f(path)
		}
		return err
	}))
}
