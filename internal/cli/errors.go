package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

// Exit codes.
const (
	exitFailed    = 1
	exitUsage     = 2
	exitDamaged   = 3   // What was saved is damaged: trying again will not help.
	exitRoost     = 125 // exec and shell: Roost failed, not the remote command.
	exitInterrupt = 130
)

// exitError carries an exit code. A nil err exits without a message: the remote command
// already said what there was to say.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// ExitCode is the code that the process ends with.
func (e *exitError) ExitCode() int { return e.code }

// usage is an error in how cmd was called.
func usage(cmd *cobra.Command, format string, args ...any) error {
	err := fault.New(fault.Invalid, "", "", fmt.Sprintf(format, args...))
	return &exitError{code: exitUsage, err: err.WithHint(cmd.CommandPath() + " --help shows how it is used")}
}

// on names the object of a command's error, for the message's head: "roost: pause ID: …".
func on(object string, err error) error {
	if err == nil {
		return nil
	}
	return &fault.Error{Kind: fault.KindOf(err), Object: object, Err: err, Hint: fault.HintOf(err)}
}

// report prints err and returns the exit code that it asks for.
func report(w io.Writer, cmd *cobra.Command, err error) int {
	code := codeOf(err)
	var exit *exitError
	if errors.As(err, &exit) && exit.err == nil {
		return code
	}
	causes := []error{err}
	var several failures
	if errors.As(err, &several) {
		causes = several
	}
	for _, cause := range causes {
		if on, _ := cmd.Flags().GetBool("json"); on {
			printErrorJSON(w, cause)
		} else {
			printError(w, cmd, cause)
		}
	}
	return code
}

// codeOf is the exit code that err asks for. One damaged object of several decides.
func codeOf(err error) int {
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	var several failures
	if !errors.As(err, &several) {
		several = failures{err}
	}
	for _, one := range several {
		if fault.Is(one, fault.DataLoss) {
			return exitDamaged
		}
	}
	return exitFailed
}

// failures are the errors of several objects of one command; each is reported by itself.
type failures []error

func (f failures) Error() string   { return errors.Join(f...).Error() }
func (f failures) Unwrap() []error { return f }

// failedAll is nil when there are no failures.
func failedAll(list []error) error {
	if len(list) == 0 {
		return nil
	}
	return failures(list)
}

func printError(w io.Writer, cmd *cobra.Command, err error) {
	head := strings.TrimSpace("roost: " + strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), "roost"), " "))
	message := err.Error()
	var f *fault.Error
	if errors.As(err, &f) && f.Op == "" && f.Object != "" {
		head, message = head+" "+f.Object, f.Err.Error()
	}
	head, message = printable(head), withoutHead(printable(message), cmd.Name(), objectOf(f))
	_, _ = fmt.Fprintf(w, "%s: %s\n", strings.TrimSuffix(head, ":"), message)
	if hint := fault.HintOf(err); hint != "" {
		_, _ = fmt.Fprintf(w, "hint: %s\n", printable(hint))
	}
}

func objectOf(f *fault.Error) string {
	if f == nil {
		return ""
	}
	return f.Object
}

// withoutHead drops "pause sandbox ID: " from a server's message, as often as it is there, when
// the line already begins with the same command and object. "cold-resume" is a resume too.
func withoutHead(message, verb, object string) string {
	for {
		head, rest, found := strings.Cut(message, ": ")
		first, _, _ := strings.Cut(head, " ")
		same := strings.HasPrefix(first, verb) || strings.HasSuffix(first, "-"+verb)
		if !found || object == "" || !same || !strings.Contains(head, object) {
			return message
		}
		message = rest
	}
}

func printErrorJSON(w io.Writer, err error) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v1.ErrorBody{Error: apiError(err)})
}

// apiError gives err the API's shape.
func apiError(err error) v1.Error {
	out := v1.Error{Code: fault.KindOf(err).String(), Message: err.Error()}
	if hint := fault.HintOf(err); hint != "" {
		out.Hint = &hint
	}
	return out
}

// fromAPI makes an error of the API's, keeping kind and hint.
func fromAPI(e v1.Error) error {
	kind := fault.Internal
	_ = kind.UnmarshalText([]byte(e.Code)) // An unknown code stays internal.
	out := fault.New(kind, "", "", e.Message)
	if e.Hint != nil {
		out.Hint = *e.Hint
	}
	return out
}
