//go:build linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/stepfleet/stepfleet/internal/dagsterapi"
)

// What a person sees of a step's log in Dagster's own UI, in a real browser.
func TestDagstersUIShowsTheLogOfAStep(t *testing.T) {
	s := shared(t)
	if err := s.dagster.ask(`mutation { setNuxSeen }`, nil, &struct{}{}); err != nil { // or a greeting covers the page
		t.Fatal(err)
	}
	page := openBrowser(t)
	t.Run("while it runs, and after it was killed", func(t *testing.T) {
		file, _ := release(t)
		run := s.dagster.launch(t, "one", config{ops: numbered("work", 1, behaviour{"release": file}, nil)})
		begins := s.awaitBegins(t, runTimeout, 1, run)
		page.openLog(t, s.dagster.url, run, "")
		page.awaitText(t, "stdout of work_0, attempt 0")
		for _, begin := range begins {
			if err := syscall.Kill(begin.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunFailure)
		page.openLog(t, s.dagster.url, run, "")
		page.awaitText(t, "stdout of work_0, attempt 0")
	})
	t.Run("of each attempt", func(t *testing.T) {
		run := s.dagster.launch(t, "one_retried", config{ops: map[string]any{"retried_0": behaviour{"fail_attempts": 1}}})
		s.dagster.awaitEnd(t, runTimeout, run, dagsterapi.RunSuccess)
		for attempt, key := range (logStack{stack: s}).fileKeys(t, run, "retried_0") {
			page.openLog(t, s.dagster.url, run, key)
			page.awaitText(t, fmt.Sprintf("stdout of retried_0, attempt %d", attempt))
		}
	})
}

// browser is a page of a headless Chromium.
type browser struct{ ctx context.Context }

// openBrowser starts one, which the test's end stops. On a failure its page is saved as a picture.
func openBrowser(t *testing.T) browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: install Debian's chromium (apt.txt)", err)
		}
		t.Skipf("%v: install Debian's chromium (apt.txt) to run this test", err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.WindowSize(1600, 1200))
	if os.Getuid() == 0 { // its sandbox wants another user; the page is our own
		options = append(options, chromedp.NoSandbox)
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, closePage := chromedp.NewContext(allocator)
	t.Cleanup(closePage)
	// The browser lives as long as the context of the first step does.
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	b := browser{ctx: ctx}
	t.Cleanup(func() {
		if t.Failed() {
			b.savePicture(t)
		}
	})
	return b
}

// openLog opens a run's page and, as a person would, the stdout of a step: by the link of the event
// that says that the log is captured. With a file key it goes to where that event's link leads.
func (b browser) openLog(t *testing.T, url, run, fileKey string) {
	t.Helper()
	page := url + "/runs/" + run
	if fileKey != "" {
		b.do(t, "open the log "+fileKey, chromedp.Navigate(page+"?logType=stdout&logFileKey="+fileKey))
		return
	}
	b.do(t, "open the run", chromedp.Navigate(page))
	b.do(t, "open the log", chromedp.Click(chromedp.Search(`//a[contains(., "View stdout / stderr")]`)))
	b.do(t, "choose stdout", chromedp.Click(chromedp.Search(`//*[@role="tab" or self::button][contains(., "stdout")]`)))
}

func (b browser) do(t *testing.T, what string, step chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, healthyTimeout)
	defer cancel()
	if err := chromedp.Do(ctx, step); err != nil {
		b.savePicture(t)
		t.Fatalf("%s: %v", what, err)
	}
}

// awaitText waits until the page shows the text.
func (b browser) awaitText(t *testing.T, want string) {
	t.Helper()
	var shown string
	deadline := time.Now().Add(logWithin)
	for !strings.Contains(shown, want) {
		if time.Now().After(deadline) {
			b.savePicture(t)
			t.Fatalf("the page does not show %q after %s; it shows:\n%s", want, logWithin, shown)
		}
		time.Sleep(pollInterval)
		text, err := chromedp.Run(b.ctx, chromedp.Evaluate[string](`document.body.innerText`))
		if err != nil {
			t.Fatalf("read the page: %v", err)
		}
		shown = text
	}
}

func (b browser) savePicture(t *testing.T) {
	t.Helper()
	picture, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		t.Logf("no picture of the page: %v", err)
		return
	}
	path := filepath.Join(os.TempDir(), strings.ReplaceAll(t.Name(), "/", "-")+".png")
	if err := os.WriteFile(path, picture, 0o600); err != nil {
		t.Logf("no picture of the page: %v", err)
		return
	}
	t.Logf("a picture of the page: %s", path)
}
