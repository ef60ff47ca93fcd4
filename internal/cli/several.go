package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// failedObject is one object of several that a command failed for, in its JSON document.
type failedObject struct {
	ID    string   `json:"id,omitempty"`
	Name  string   `json:"name,omitempty"`
	Error v1.Error `json:"error"`
}

// each does do to every object in turn, also when it fails for one of them; doing is told on
// stderr when it takes long. Afterwards settle gets the outcome, with nothing drawn any more, and
// says what counts as a failure. Only an interrupt ends it early.
func each[T any](ctx context.Context, quiet bool, doing string, objects []string, do func(object string) (T, error), settle func(object string, did T, err error) error) (failures, error) {
	var failed failures
	for _, object := range objects {
		progress := startBusy(quiet, doing+" "+object)
		did, err := do(object)
		progress.stop()
		if ctx.Err() != nil {
			return failed, ctx.Err()
		}
		if err := settle(object, did, err); err != nil {
			failed = append(failed, on(object, err))
		}
	}
	return failed, nil
}

// changes is the JSON document of a command that changed several sandboxes; for one it is the
// sandbox.
type changes struct {
	Sandboxes []v1.Sandbox   `json:"sandboxes"`
	Failed    []failedObject `json:"failed,omitempty"`
}

// onSandboxes makes a RunE for a command that changes one or more sandboxes and prints their
// ids; told gets each that was changed.
func (a *app) onSandboxes(doing string, change func(ctx context.Context, c *client, id string) (v1.Sandbox, error), told func(v1.Sandbox)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := checkAll(args, checkID); err != nil {
			return usage(cmd, "%s", err.Error())
		}
		return a.run(func(ctx context.Context, c *client, ids []string) error {
			out := changes{Sandboxes: []v1.Sandbox{}}
			failed, err := each(ctx, a.json, doing, ids,
				func(id string) (v1.Sandbox, error) { return change(ctx, c, id) },
				func(id string, s v1.Sandbox, err error) error { return a.settleChange(&out, id, s, err, told) })
			if err != nil {
				return err
			}
			return a.changed(out, len(ids) > 1, failed)
		})(cmd, args)
	}
}

func (a *app) settleChange(out *changes, id string, s v1.Sandbox, err error, told func(v1.Sandbox)) error {
	if err != nil {
		out.Failed = append(out.Failed, failedObject{ID: id, Error: apiError(err)})
		return err
	}
	out.Sandboxes = append(out.Sandboxes, s)
	told(s)
	if a.json {
		return nil
	}
	return printID(s)
}

func (a *app) changed(out changes, several bool, failed failures) error {
	switch {
	case a.json && several:
		return printWithFailures(out, failed)
	case a.json && len(failed) == 0:
		return printJSON(os.Stdout, out.Sandboxes[0])
	default:
		return failedAll(failed)
	}
}

// printWithFailures prints a JSON document that has the failures in it.
func printWithFailures(document any, failed failures) error {
	if err := printJSON(os.Stdout, document); err != nil {
		return err
	}
	if len(failed) > 0 {
		return &exitError{code: codeOf(failed)}
	}
	return nil
}

// tell says something on stderr that is neither a result nor an error; not with --json, where
// stderr is for errors alone.
func (a *app) tell(format string, args ...any) {
	if !a.json {
		_, _ = fmt.Fprintf(os.Stderr, "roost: %s\n", printable(fmt.Sprintf(format, args...)))
	}
}

// remark is tell for a person who watches.
func (a *app) remark(format string, args ...any) {
	if isTerminal(os.Stderr) {
		a.tell(format, args...)
	}
}
