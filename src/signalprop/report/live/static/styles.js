// The page forbids inline styles. Plotly writes some style attributes; here they are set rule by
// rule instead, which is allowed, and means the same.
"use strict";
(() => {
  const plain = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function setAttribute(name, value) {
    if (name === "style" && this.style) this.style.cssText = value;
    else plain.call(this, name, value);
  };
})();
