// Browsers start no worker for a page that was opened from a file. There, the search runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      inside.document.open()
      inside.document.write("<!doctype html><body></body>")
      inside.document.close()
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) => urls.reduce((earlier, each) => earlier.then(() => this.load(each)), Promise.resolve())
      this.loaded = this.load(String(url))
    }

    load(url) {
      const inside = this.frame.contentWindow.document
      const script = inside.createElement("script")
      script.src = url
      inside.body.append(script)
      return new Promise((resolve, reject) => {
        script.addEventListener("load", resolve)
        script.addEventListener("error", reject)
      })
    }

    postMessage(data) {
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
